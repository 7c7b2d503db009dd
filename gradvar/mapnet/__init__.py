"""The mask proposal network: what it is, what it is fitted to, and how far its scores are trusted. Knows no encoder."""
