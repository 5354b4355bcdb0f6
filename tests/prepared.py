"""Small image sets on disk, in the format in which TFDS prepares sets."""

import io

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from nc_jax.data import digits


def encoded(pixels, file_format, mode=None):
    """Return the bytes of an image file: TFDS stores the files of a set unchanged."""
    image = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    buffer = io.BytesIO()
    image.convert(mode or image.mode).save(buffer, format=file_format, quality=95)
    return buffer.getvalue()


def smooth(height, width, channels=3, turn=0.0):
    """A picture that JPEG keeps well."""
    rows, columns, bands = np.ogrid[:height, :width, :channels]
    waves = np.sin(rows / 9 + turn) + np.cos(columns / 11 + bands)
    return np.uint8(64 * waves + 128)


def written(data_dir, name, version, image, label, splits, config=None):
    """Have TFDS write a small set that claims to be `name`, images given as bytes."""

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            features = tfds.features.FeaturesDict({"id": tfds.features.Text(), "image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            for index, (stored, number) in enumerate(splits[split]):
                yield index, {"id": f"{split}_{index}", "image": stored, "label": number}

    Small.name = name
    builder = Small(data_dir=data_dir, file_format="array_record")
    digits.prepare_quietly(builder)
    return builder.data_path
