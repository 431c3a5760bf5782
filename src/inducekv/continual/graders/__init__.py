"""Whether an answer counts as right, or how right it is: one grader a rule, side by side.

Where the published code has a known fault there are two graders: `<name>/faithful` does what it does, `<name>/fixed`
what was meant.
"""

from inducekv.continual.graders.base import Grader
from inducekv.continual.graders.exact import EXACT, accuracy, exact_match, normalised

__all__ = ["EXACT", "Grader", "accuracy", "exact_match", "normalised"]
