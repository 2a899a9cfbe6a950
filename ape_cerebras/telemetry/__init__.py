"""The record of an exchange, and what logs, metrics and /health make of it."""
