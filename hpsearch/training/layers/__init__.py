"""Layers of K models at once.

Activations are feature-major, (K, features, batch): the batch is the innermost axis, so that softmax, biases and
means run along contiguous memory and every matrix product of a pack is one call. Images are
(batch, K, channels, height, width), so that K convolutions are one grouped one. The input of the first layer is
(batch, features) or (batch, height, width, channels), shared by all members.

The backward passes of what every net is made of are written by hand: on one core the products and updates of a small
net are so cheap that an autograd graph and its fresh gradient buffers cost a tenth to a fifth of a step. The others
are torch's, layer by layer (:class:`Autograd`). All rely on two facts. Nothing flows between members, and each
backward pass is linear in the gradient it is given: so a gradient scaled per member by −lr
arrives at every parameter as that member's step, and can be added straight into its velocity (see optimisers).
"""

from hpsearch.training.layers.activations import Activation, Activity, Relu
from hpsearch.training.layers.base import Autograd, Buffer, Layer, Parameter, Pass
from hpsearch.training.layers.dropout import Dropout
from hpsearch.training.layers.images import Convolution, ImageMean, flatten, max_pool
from hpsearch.training.layers.linear import Bfloat16Linear, Linear
from hpsearch.training.layers.normalisation import BatchNorm
from hpsearch.training.layers.residual import Residual, run, run_back

__all__ = [
    "Activation", "Activity", "Autograd", "BatchNorm", "Bfloat16Linear", "Buffer", "Convolution", "Dropout",
    "ImageMean", "Layer", "Linear", "Parameter", "Pass", "Relu", "Residual", "flatten", "max_pool", "run", "run_back",
]  # fmt: skip
