"""When runs reach a loss, and ratios of such times over paired seeds: arithmetic that knows no run, recipe or model."""
