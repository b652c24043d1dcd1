"""The command line: a thin file per command that reads options, calls one function and shows its result."""
