"""One module a command: parse, call, render. Nothing heavy is imported before it is needed."""
