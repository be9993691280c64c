"""Reward models: a number for a response, learned from comparisons by the Bradley–Terry likelihood.

    model = FeatureRewardModel(features=8)
    train(model, pairs, "bt", settings=TrainingSettings(steps=500))
    votes = vote(train_ensemble(FeatureRewardModel.maker(8), pairs, members=10, settings=settings), pairs)

`models` has two: a linear or small network of given features, and a scalar head on a language model that reads the
last token of the response. Both are trained by the same loop as policies; "bt" takes a margin and label smoothing,
"gpm" embeddings (`outputs=2` or more). `voting` measures preference strength with several of them.
"""

from course_utils.reward_models.models import FeatureRewardModel, LanguageRewardModel
from course_utils.reward_models.voting import (
    SOFT_BT,
    Votes,
    drop,
    flip,
    pair_accuracy,
    reward_differences,
    soft_bt,
    train_ensemble,
    vote,
    with_features,
)

__all__ = [
    "SOFT_BT",
    "FeatureRewardModel",
    "LanguageRewardModel",
    "Votes",
    "drop",
    "flip",
    "pair_accuracy",
    "reward_differences",
    "soft_bt",
    "train_ensemble",
    "vote",
    "with_features",
]
