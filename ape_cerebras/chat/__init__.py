"""The endpoints of the API: chat completions and models."""
