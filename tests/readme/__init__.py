"""The README's measurements as a text: its tables and goals, out of the JSON of `bngen bench`."""
