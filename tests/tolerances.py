"""Every tolerance of the test-suite, in one place; none depends on the machine."""

FLOAT64 = 1e-12  # two exact float64 computations of one quantity, relative
FLOAT32 = 1e-6  # the same in float32, of order one
STATE = 1e-6  # a streamed state against one-shot conditioning
PREDICTION = 1e-5  # float32 predictions after a dozen layers
ENDLESS_LSE = 1e-9  # log-sum-exp after ten million equal scores
GRADIENT = 1e-10  # float64 through a few sums of products, or several layers
FLOAT32_CURVATURE = (
    1e-4  # float32 against float64 second derivatives, relative to the largest entry
)
AUTOCAST = (
    0.05  # bfloat16 keeps three digits; a layer or a loss of order one adds a few of its roundings
)
MUON_BFLOAT16 = 0.02  # torch's Muon orthogonalises in bfloat16
RECURSIVE_RATE = 1e-9  # torch updates the learning rate from step to step and rounds as it goes
PRINTED_RATE = 1e-3  # of the learning rates in experiments, which are written with four digits
RECURSION = 1e-5  # float32 values of order ten, computed one from the other
SINE_ROUNDING = 1e-5  # float32 sines of angles up to 50
DRIFT_ROUNDING = (
    2e-3  # float32, the offset of a drifting stream against the spread of its first rows
)
SLOPE = 1e-4  # of waves seen through float32 values at points 0.01 apart
SOLVE = 1e-8  # float64 solves of matrices of condition up to 10⁵, relative
SPECTRAL_SOLVE = 1e-9  # float64 through a Cholesky factor of a hundred features
UPDATED_SOLVE = 1e-6  # after hundreds of operations in float64 on a matrix of condition 10⁴
NOISY_ORACLE = 2e-3  # nats; outputs are handed out in float32 and divided by a noise of 0.03
UNTRAINED = 0.01  # nats per target between the regressions and an anchored process before training
QUADRATURE = 1e-9  # scipy's adaptive quadrature of a smooth integrand, absolute
TRAPEZOIDS = 1e-6  # of the trapezoidal rule on a fine grid
SIMULATED = 0.01  # a fraction estimated from 100,000 draws: six standard errors
SIGMAS = 5.0  # how far a seeded estimate may lie from its expectation, in standard errors
MANY_SIGMAS = 4.5  # the same, where some 40 Monte-Carlo means are looked at
UNLIKELY = 1e-4  # a true hypothesis is rejected this often; seeds are fixed
DIFFERENCED = (
    5e-3  # central differences against the gradient of values that may be rounded to float32
)
SAMPLING = 0.05  # 4,096 draws of unit size, five standard errors at the least
EVEN_KERNEL = (
    1e-5  # what 64 even frequencies leave out of the spectrum of length-scale 0.1 in a period of 8
)
