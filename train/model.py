"""The model and its optimizer: what a team replaces first."""

from typing import Any


def build(row_shape: tuple[int, ...], classes: int, value_range: tuple[float, float], seed: int) -> Any:
    """A Keras model from raw rows (float32 [n, *row_shape]) to probabilities (float32 [n, classes]).

    Scaling is part of the model, so whoever serves it needs to know nothing. Pictures
    ([height, width] or [height, width, channels]) go through convolutions, plain rows through
    a dense layer. `seed` decides the first weights. Give layers names: they end up in the files.
    """
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    low, high = value_range
    pixels = keras.Input(row_shape, name="pixels", dtype="float32")
    scaled = layers.Rescaling(1 / (high - low), offset=-low / (high - low), name="scale")(pixels)
    found = _look_at(scaled, row_shape) if len(row_shape) >= 2 else scaled
    hidden = layers.Dense(64, activation="relu", name="hidden")(layers.Flatten(name="flat")(found))
    kept = layers.Dropout(0.3, name="dropout")(hidden)
    probabilities = layers.Dense(classes, activation="softmax", name="probabilities")(kept)
    return keras.Model(pixels, probabilities, name="classifier")


def _look_at(pixels: Any, row_shape: tuple[int, ...]) -> Any:
    from keras import layers

    if len(row_shape) == 2:
        pixels = layers.Reshape((*row_shape, 1), name="one_channel")(pixels)
    edges = layers.Conv2D(32, 3, padding="same", activation="relu", name="edges")(pixels)
    shapes = layers.Conv2D(32, 3, padding="same", activation="relu", name="shapes")(edges)
    return layers.MaxPooling2D(2, padding="same", name="pool")(shapes)


def optimizer(learning_rate: float) -> Any:
    """What turns gradients into steps."""
    import keras

    return keras.optimizers.Adam(learning_rate)
