"""What fits on which graphics card, said before anything is downloaded.

    gpu.plan("Qwen/Qwen2.5-0.5B-Instruct", "rdro", batch=8, prompt=512, response=512)

The answer is arithmetic, shown part by part: weights, gradients, optimiser, reference, activations, logits. For each card
it says whether the step fits, and if not, which remedy makes it fit. `precision()` chooses the number format that the
card at hand can do. `benchmarks/gpu_step.py` puts the arithmetic beside what a step really takes.
"""

from course_utils.gpu.cards import CARDS, Card, Precision, precision
from course_utils.gpu.planning import Plan, plan
from course_utils.gpu.shapes import SHAPES, Shape, shape_of

__all__ = [
    "CARDS",
    "SHAPES",
    "Card",
    "Plan",
    "Precision",
    "Shape",
    "plan",
    "precision",
    "shape_of",
]
