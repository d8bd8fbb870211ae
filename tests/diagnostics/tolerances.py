"""Tolerances of the diagnostics' tests, per dtype, in one place."""

# Relative error against float64 numpy of numbers that are sums, norms or ranks.
RELATIVE = {"bfloat16": 2e-5, "float32": 2e-5, "float64": 1e-10}

# Relative error of a singular value, in units of the largest one.
SINGULAR_VALUE = {"float32": 2e-6, "float64": 1e-13}

# Absolute error of a principal angle in radians; 1e-4 degrees is 1.7e-6 rad. Float32 bases are as good as σ₁/γ_k lets.
ANGLE = {"float32": 3e-4, "float64": 1e-9}

# Relative error of a directional derivative against central differences in float64.
GRADIENT = 1e-5

# Krylov iteration, relative, on iid Gaussian matrices (no decay: the hardest case).
KRYLOV_NORM = 1e-4

# Closed-form nulls against Monte-Carlo, in standard errors of the Monte-Carlo mean.
SIGMAS = 5.0

# First-order closed forms of the norm-matched null, relative, inside their stated range and outside.
NSS_NULL = 0.06
NSS_NULL_LARGE = 0.12
ANGLE_NULL = 0.08

# Published table of rounding-null overlaps (science.md, section 4), absolute.
PUBLISHED_OVERLAP = 0.0025
