"""What fits on which graphics card, said before anything is downloaded.

    gpu.plan("Qwen/Qwen2.5-0.5B-Instruct", "rdro", batch=8, prompt=512, response=512)

The answer is arithmetic, shown part by part: weights, gradients, optimiser, reference, activations, logits. For each card
it says whether the step fits, and if not, which remedy makes it fit. `precision()` chooses the number format that the
card at hand can do. `benchmarks/gpu_step.py` puts the arithmetic beside what a step really takes.

With `shards=8` eight cards share the weights: the memory of each, and what travels between them (`sharding`).
`estimate` and `of_record` say what a run costs (`cost`): hours, energy, and with the reader's own prices money and carbon.
"""

from course_utils.gpu.cards import CARDS, Card, Precision, precision
from course_utils.gpu.cost import Cost, energy_meter, estimate, of_record
from course_utils.gpu.parts import Part
from course_utils.gpu.planning import Plan, plan
from course_utils.gpu.shapes import SHAPES, Shape, shape_of
from course_utils.gpu.sharding import LINKS

__all__ = [
    "CARDS",
    "LINKS",
    "SHAPES",
    "Card",
    "Cost",
    "Part",
    "Plan",
    "Precision",
    "Shape",
    "energy_meter",
    "estimate",
    "of_record",
    "plan",
    "precision",
    "shape_of",
]
