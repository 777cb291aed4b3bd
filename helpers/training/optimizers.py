"""How large the steps are: over time, from stage to stage, and away from where a weight started."""

import math

from helpers._keras import keras, on_all_devices
from helpers.backbones import find_stages


def warmup_cosine(
    learning_rate: float, *, images: int, batch_size: int, epochs: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns a learning rate that rises in the first tenth of training, then falls to 0 on a cosine.

    Warm-up spares the pretrained weights Adam's first steps, which are as large as the rate allows while
    its averages are still empty (Goyal et al. 2017, arXiv 1706.02677; cosine: arXiv 1608.03983).

    Args:
        learning_rate: the highest rate.
        images: number of training images.
        batch_size: images per step.
        epochs: length of the training.

    Raises:
        ValueError: a value is not positive.
    """
    values = {"learning_rate": learning_rate, "images": images, "batch_size": batch_size, "epochs": epochs}
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"Expected `{name}` above 0. Received {value}.")
    steps = epochs * math.ceil(images / batch_size)
    warmup = math.ceil(steps / 10)
    # The first step has a tenth of the rate and not 0: otherwise one epoch of one step would learn nothing.
    return keras.optimizers.schedules.CosineDecay(
        0.1 * learning_rate, max(1, steps - warmup), warmup_target=learning_rate, warmup_steps=warmup
    )


class AdjustableRate(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule whose highest rate can still be changed after `compile`."""

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, highest: float, *, parts: int = 1):
        """Takes a schedule with a highest rate of 1, the rate, and in how many parts a batch comes.

        Keras counts each part as a step when it asks for the rate.
        """
        self.schedule, self.parts = schedule, parts
        with on_all_devices():
            self.highest = keras.Variable(highest, trainable=False, dtype="float32", name="highest_rate")

    def __call__(self, step):
        return self.highest * self.schedule(step // self.parts)

    def get_config(self):
        """Is asked for by `compile`."""
        return {"schedule": self.schedule.get_config(), "highest": float(self.highest), "parts": self.parts}


def decaying_rates(model: keras.Model, lowest: float) -> dict[str, float]:
    """Returns the factor of each stage's learning rate: 1 at the top, `lowest` at the bottom, even steps between.

    Early stages hold what most images have in common, and need to change least. The steps are even in the
    logarithm, as in discriminative fine-tuning (Howard and Ruder 2018, arXiv 1801.06146), and count from the whole
    network's first stage, so that a factor does not depend on how much of the network is frozen.

    Args:
        model: the whole classifier, not its suffix.
        lowest: the factor of the network's first stage, above 0; 1 for one rate everywhere.

    Raises:
        ValueError: `lowest` is not above 0.
    """
    if not lowest > 0:
        raise ValueError(f"Expected `lowest_rate` above 0. Received {lowest}.")
    stages = list(find_stages(model))[1:]
    top = max(len(stages) - 1, 1)
    return {stage: lowest ** ((top - position) / top) for position, stage in enumerate(stages)}


def make_optimizer(
    model: keras.Model,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
    *,
    name: str = "adam",
    rates: float | dict[str, float] = 1.0,
    pull: float = 0.0,
    thaw: dict[str, int] | None = None,
    parts: int = 1,
) -> keras.optimizers.Optimizer:
    """Returns an optimizer that knows the model's stages. Without options it is plain Adam or SGD.

    Args:
        model: the whole classifier, frozen as it will be trained (`freeze`).
        learning_rate: a rate or a schedule.
        name: "adam", or "sgd" (with Nesterov momentum of 0.9).
        rates: the factor of the learning rate at the network's first stage (`decaying_rates`); or a dict of stage to
            factor, where stages that are not named have 1.
        pull: strength of the pull of each weight towards where it started, relative to the gradient: L2-SP (Li
            et al. 2018, arXiv 1802.01483). 0 for none. The head's weights are pulled towards the solved head.
        thaw: stage to the number of steps for which it stays frozen at first: gradual unfreezing (arXiv 1801.06146).
            Its gradients are computed from the start, so it saves no time.
        parts: in how many of them a batch comes; their gradients' mean makes a step (gradient accumulation).

    Raises:
        ValueError: an unknown optimizer; a stage that the model does not have or that is frozen, so that its rule
            would match nothing; a negative factor, pull or number of steps.
    """
    bases = {"adam": (keras.optimizers.Adam, {}), "sgd": (keras.optimizers.SGD, {"momentum": 0.9, "nesterov": True})}
    if name not in bases:
        raise ValueError(f'Expected `optimizer` "adam" or "sgd". Received {name!r}.')
    if pull < 0:
        raise ValueError(f"Expected `pull` of at least 0. Received {pull}.")
    base, settings = bases[name]
    settings = settings | ({"gradient_accumulation_steps": parts} if parts > 1 else {})
    learning = {
        stage: [id(weight) for layer in part.layers for weight in layer.trainable_weights]
        for stage, part in find_stages(model).items()
    }
    learning = {stage: weights for stage, weights in learning.items() if weights}
    if not isinstance(rates, dict):
        falling = decaying_rates(model, rates)
        rates = {stage: falling[stage] for stage in learning if falling[stage] != 1}
    for rule, given in (("rates", rates), ("thaw", thaw or {})):
        for stage, value in given.items():
            if stage not in learning:
                why = "is frozen" if stage in find_stages(model) else "this network does not have"
                raise ValueError(
                    f"Expected the stages in `{rule}` to be among those that learn: {', '.join(learning)}. Received "
                    f"{stage!r}, which {why}."
                )
            if value < 0:
                raise ValueError(f"Expected values of at least 0 in `{rule}`. Received {value} for {stage}.")
    with on_all_devices():
        if not (rates or pull or thaw):
            return base(learning_rate, **settings)
        factors = {weight: rates.get(stage, 1.0) for stage, weights in learning.items() for weight in weights}
        frozen_for = {weight: (thaw or {}).get(stage, 0) for stage, weights in learning.items() for weight in weights}
        optimizer = _by_stage(base)(learning_rate, **settings, factors=factors, frozen_for=frozen_for, pull=pull)
        # Now and not in the first step, which is traced: what it assigns is lost, and all would be pulled to 0.
        optimizer.build(model.trainable_variables)
        return optimizer


def _by_stage(base: type) -> type:
    """Returns the optimizer class with a rule for each variable; Keras itself knows one rate for all."""

    class ByStage(base):
        def __init__(self, *arguments, factors: dict, frozen_for: dict, pull: float, **settings):
            super().__init__(*arguments, **settings)
            self.factors, self.frozen_for, self.pull = factors, frozen_for, pull

        def build(self, variables):
            if self.built:
                return
            super().build(variables)
            self._rules = [(self.factors[id(v)], self.frozen_for[id(v)]) for v in variables]
            if self.pull:
                self._starts = self.add_optimizer_variables(variables, "start")
                for start, variable in zip(self._starts, variables, strict=True):
                    start.assign(variable)

        def update_step(self, gradient, variable, learning_rate):
            index = self._get_variable_index(variable)
            factor, frozen_for = self._rules[index]
            if self.pull:
                gradient = keras.ops.add(gradient, self.pull * keras.ops.subtract(variable, self._starts[index]))
            if frozen_for:
                factor = factor * keras.ops.cast(self.iterations >= frozen_for, learning_rate.dtype)
            super().update_step(gradient, variable, learning_rate * factor)

    ByStage.__name__ = base.__name__
    return ByStage
