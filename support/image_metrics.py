"""How alike are two pictures? PSNR, SSIM and MS-SSIM as `tf.image` defines them, averaged in float64.

On CPUs `tf.image.ssim` and `ssim_multiscale` average over height and width in float32, number by number. On large
pictures that loses accuracy: `tf.reduce_mean(0.93 * tf.ones([1, 960, 1472, 3]), [1, 2])` is 0.9237.
"""

from utils import tf

# of the five scales, finest first, and the constant of the luminance (Wang, Simoncelli, Bovik, Asilomar 2003)
MS_SSIM_WEIGHTS = 0.0448, 0.2856, 0.3001, 0.2363, 0.1333
K1 = 0.01
WITHOUT_LUMINANCE = 1e4  # as K1, it makes the luminance 1, so that contrast times structure is left


def psnr(images, targets):
    """Returns the PSNR in dB, float64 (images,), of float32 (images, height, width, 3) in 0-1."""
    mse = _mean(tf.math.squared_difference(images, targets), (1, 2, 3))
    return -10 * tf.math.log(mse) / tf.math.log(tf.constant(10, tf.float64))


def ssim(images, targets):
    """Returns the SSIM (Wang et al., TIP 2004), float64 (images,), of float32 (images, height, width, 3) in 0-1."""
    return _mean(tf.image.ssim(images, targets, 1.0, return_index_map=True), (1, 2))


def ms_ssim(images, targets):
    """Returns the MS-SSIM, float64 (images,), of float32 (images, height, width, 3) in 0-1, of 176 pixels or more."""
    channels = images.shape[-1]
    images, targets = map(_channels_as_images, (images, targets))
    product = tf.constant(1, tf.float64)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale:
            images, targets = _halve(images), _halve(targets)
        k1 = K1 if scale == len(MS_SSIM_WEIGHTS) - 1 else WITHOUT_LUMINANCE
        index = _mean(tf.image.ssim(images, targets, 1.0, k1=k1, return_index_map=True), (1, 2))
        product *= tf.nn.relu(index) ** weight
    return tf.reduce_mean(tf.reshape(product, (-1, channels)), 1)


def _mean(values, axes):
    return tf.reduce_mean(tf.cast(values, tf.float64), axes)


def _channels_as_images(images):
    """Converts (images, height, width, channels) to (images * channels, height, width, 1)."""
    _, height, width, _ = tf.unstack(tf.shape(images))
    return tf.reshape(tf.transpose(images, (0, 3, 1, 2)), (-1, height, width, 1))


def _halve(images):
    """Averages 2 x 2 pixels; the last row and column of an odd size count twice."""
    odd = tf.shape(images)[1:3] % 2
    padded = tf.pad(images, [(0, 0), (0, odd[0]), (0, odd[1]), (0, 0)], "SYMMETRIC")
    return tf.nn.avg_pool2d(padded, 2, 2, "VALID")
