"""What can be set, which settings fit together, and what identifies a run. Imports no torch.

Importing it declares every setting and every built-in plug-in.
"""

import specdec.config.budgets
import specdec.config.heads
import specdec.config.labels
import specdec.config.methods
import specdec.config.multipath
import specdec.config.running
import specdec.config.selectors
import specdec.config.trees  # noqa: F401  (these declare ${pair_name:...} and the built-in plug-ins)
from specdec.config.schema import RunConfig

__all__ = ["RunConfig"]
