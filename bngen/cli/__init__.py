"""The command line: flags and printing; decisions are made elsewhere."""
