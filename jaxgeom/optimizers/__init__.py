"""Optax transformations of ours, and AdamW as the study uses it."""

from typing import TYPE_CHECKING

from jaxgeom.lazy import import_when_asked

if TYPE_CHECKING:
    from .adam import adamw as adamw
    from .adam import decayed_by_name as decayed_by_name
    from .adam import learning_rate_schedule as learning_rate_schedule
    from .adam import with_standard_promotion as with_standard_promotion
    from .adam_in_coordinates import subspace_adamw as subspace_adamw
    from .confinement import confined as confined
    from .confinement import subspace_coordinates as subspace_coordinates
    from .masking import mask_gradients as mask_gradients
    from .masking import masked_training as masked_training
    from .masking import restore_frozen as restore_frozen
    from .projection import project_gradients as project_gradients
    from .projection import project_updates as project_updates
    from .settings import AdamWSettings as AdamWSettings
else:
    import_when_asked(__name__)
