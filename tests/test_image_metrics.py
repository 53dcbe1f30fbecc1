"""support/image_metrics.py: PSNR, SSIM and MS-SSIM are those of the papers in float64, on large pictures too."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from support import image_metrics

LARGE = 1024, 1536
WINDOW = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.5 ** 2))


def pictures(height, width, noise=0.05):
    """A picture of smooth colours with some texture, and the same with noise: float32 (height, width, 3) in 0-1."""
    random = np.random.default_rng(0)
    y, x, channel = np.meshgrid(np.arange(height) / height, np.arange(width) / width, np.arange(3), indexing="ij")
    picture = 0.5 + 0.3 * np.sin(3 * x + 5 * y + channel) + 0.1 * np.sin(400 * x) * y
    noisy = picture + noise * x * random.normal(size=picture.shape)
    return np.float32(picture), np.float32(np.clip(noisy, 0, 1))


def float64_index_maps(image, target):
    """Luminance and contrast times structure (Wang et al. 2004), float64 (height - 10, width - 10, channels)."""
    def blurred(values):
        for axis in (0, 1):
            values = ndimage.correlate1d(values, WINDOW / WINDOW.sum(), axis)
        return values[5:-5, 5:-5]

    c1, c2 = 0.01 ** 2, 0.03 ** 2
    x, y = np.float64(image), np.float64(target)
    mean_x, mean_y = blurred(x), blurred(y)
    covariance = blurred(x * y) - mean_x * mean_y
    variances = blurred(x * x) + blurred(y * y) - mean_x ** 2 - mean_y ** 2
    return ((2 * mean_x * mean_y + c1) / (mean_x ** 2 + mean_y ** 2 + c1), (2 * covariance + c2) / (variances + c2))


def float64_ms_ssim(image, target):
    product, weights = 1, (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    for scale, weight in enumerate(weights):
        luminance, structure = float64_index_maps(image, target)
        index = luminance * structure if scale == 4 else structure
        product *= np.maximum(index.mean((0, 1)), 0) ** weight
        image, target = (np.pad(np.float64(whole), [(0, whole.shape[0] % 2), (0, whole.shape[1] % 2), (0, 0)],
                                "symmetric") for whole in (image, target))
        image, target = (sum(whole[row::2, column::2] for row in (0, 1) for column in (0, 1)) / 4
                         for whole in (image, target))
    return product.mean()


def test_metrics_of_large_pictures_are_within_1e_5_of_float64():
    image, target = pictures(*LARGE)
    batch = tf.constant(image[np.newaxis]), tf.constant(target[np.newaxis])
    luminance, structure = float64_index_maps(image, target)
    expected_ssim = (luminance * structure).mean()
    assert float(image_metrics.ssim(*batch)[0]) == pytest.approx(expected_ssim, abs=1e-5)
    assert float(image_metrics.ms_ssim(*batch)[0]) == pytest.approx(float64_ms_ssim(image, target), abs=1e-5)
    mse = np.mean((np.float64(image) - target) ** 2)
    assert float(image_metrics.psnr(*batch)[0]) == pytest.approx(-10 * np.log10(mse), abs=1e-5)


@pytest.mark.parametrize("size", [(176, 192), (181, 243)])
def test_metrics_of_small_pictures_are_those_of_tf_image(size):
    """Where its float32 means are still accurate, for each image of a batch, odd sizes, and images that are opposed."""
    images = [pictures(*size), pictures(*size, noise=0.5), (pictures(*size)[0], 1 - pictures(*size)[0])]
    batch = [tf.constant(np.stack(one)) for one in zip(*images)]
    for name, metric in {"psnr": tf.image.psnr, "ssim": tf.image.ssim, "ms_ssim": tf.image.ssim_multiscale}.items():
        found = getattr(image_metrics, name)(*batch)
        np.testing.assert_allclose(found, metric(*batch, 1.0), atol=2e-5, err_msg=name)
        in_graph = tf.function(getattr(image_metrics, name))(*batch)
        np.testing.assert_allclose(found, in_graph, atol=1e-5)
    assert float(image_metrics.ms_ssim(*batch)[2]) == 0
