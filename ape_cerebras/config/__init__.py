"""The settings, the values they hold, and the files that some of them name."""
