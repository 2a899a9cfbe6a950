"""The clients' side: listening, reading requests, sending responses."""
