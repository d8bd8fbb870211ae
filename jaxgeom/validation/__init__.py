"""A model in PyTorch and here, side by side: what `jaxgeom validate` runs."""

from jaxgeom.validation.checks import Check as Check
from jaxgeom.validation.checks import first_failure as first_failure
from jaxgeom.validation.checks import validate_model as validate_model
from jaxgeom.validation.tolerances import TOLERANCES as TOLERANCES
