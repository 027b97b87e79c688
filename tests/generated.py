"""How many inputs hypothesis draws for a test: always the same ones, kept nowhere."""

from hypothesis import HealthCheck, settings

fast = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,  # the first call compiles
    suppress_health_check=[HealthCheck.too_slow],
)
