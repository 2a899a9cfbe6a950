"""One or several operating-system processes: workers, signals, hardening."""
