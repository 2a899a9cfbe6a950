"""The histograms' buckets, where no setting says otherwise."""

__all__ = ("BUCKETS",)

# Fine between 1 ms and 500 ms for TTFT and down to 0.1 ms for a token, where this upstream lives;
# the bounds of OpenTelemetry's semantic conventions are all among them, so that their queries work.
BUCKETS: dict[str, tuple[float, ...]] = {
    "ttft": (
        *(0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.25),
        *(0.3, 0.4, 0.5, 0.75, 1, 1.5, 2.5, 5, 7.5, 10, 20, 40, 80),
    ),
    "tpot": (
        *(0.0001, 0.0002, 0.0003, 0.0004, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005),
        *(0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 2.5),
    ),
    "duration": tuple(0.01 * 2**power for power in range(16)),
    "overhead": (
        *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1),
    ),
    "gap": (
        *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56),
        *(5.12, 10.24),
    ),
    "lag": (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
    "speed": (50, 100, 200, 400, 600, 800, 1000, 1250, 1500, 2000, 2500, 3000, 4000),
}
"""Upper bounds of the histograms' buckets, by family; seconds, but for `speed`: tokens/second."""
