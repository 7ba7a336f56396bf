"""Every tolerance of the test-suite, in one place; none depends on the machine."""

FLOAT64 = 1e-12  # two exact float64 computations of one quantity, relative
FLOAT32 = 1e-6  # the same in float32, of order one
STATE = 1e-6  # a streamed state against one-shot conditioning
PREDICTION = 1e-5  # float32 predictions after a dozen layers
ENDLESS_LSE = 1e-9  # log-sum-exp after ten million equal scores
