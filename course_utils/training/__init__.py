"""Training: one loop for every objective and every world.

    train(policy, feedback, objective)   the loop (`loop`)
    TrainingSettings                     steps, batch size, learning rate, seed ... (`settings`)
    History                              what happened, one row for each step (`history`)
    OnPolicy                             prompts and a reward, for objectives that sample from the policy (`examples`)

What happens on the way: `order` says which rows make up a batch, `examples` turns them into log-probabilities,
`terms` and `problem` into a loss and its gradient, `checkpoints` lets a run that was killed go on.
"""

from course_utils.training.examples import OnPolicy
from course_utils.training.history import History
from course_utils.training.loop import TrainingResult, train
from course_utils.training.settings import TrainingSettings

__all__ = ["History", "OnPolicy", "TrainingResult", "TrainingSettings", "train"]
