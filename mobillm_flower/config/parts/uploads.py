"""What leaves the device, and how it is protected."""

from __future__ import annotations

from dataclasses import dataclass, field

from mobillm_flower.config.parts.ranges import number, one_of


@dataclass
class ActivationSettings:
    """What of the forward pass leaves the device.

    Parameters
    ----------
    num_blocks : int
        M, the layers that are sampled; 0: with sampling upper the embeddings and two thirds of them, with spread three,
        otherwise as many as the shallowest backbone has, ten if it has more than twelve.
    sampling : str
        uniform, top-heavy (finer near the output), upper (the embeddings and the last M - 1 layers) or spread (the
        embeddings and the ends of M - 1 equal blocks); auto: where all devices have one type and the side network is
        solved in closed form, upper for encoders and spread for causal models without label words, else uniform.
    layers : list of int
        Layers to sample, counted from 1 (0: the embeddings), ending with the last; overrides `sampling`. With side
        network upper-layers the one layer that it goes on from, by default a third of the depth.
    pivot : str
        last, first, mean, first+mean, last+mean, all, or a registered one; auto: for causal models last, with sampling
        spread last+mean; for encoders mean if the side network is solved in closed form, otherwise first+mean; for
        language modelling all, which there means every token in the loss, or with side network upper-layers every token
        that is read.
    bi_encoder : bool or None
        Pairs: run each text by itself, and send how the two texts' vectors differ and agree; otherwise the backbone
        reads both as one. auto: true for an encoder that predicts nothing by itself, unless the settings ask for a
        prompt, every token, standardisation, clipping, noise, a projection or sums.
    standardise : bool
        Public shift and scale per layer; forced on by `clip_norm` and `noise_sigma`.
    clip_norm : float
        C, the largest L2 norm of a sample's standardised activations, all layers together; 0: off.
    noise_sigma : float
        σ of the normal noise that is added to each value; 0: off.
    keep : float
        Share of each pivot vector that is kept, by magnitude.
    projection : int
        d: make one unit vector of d values of all vectors of a sample, along the directions in which public text varies
        most; 0: off.
    upload_kib : int
        With strategy `analytic`: KiB of a device's sums, from which the projection's d follows, unless it is given.
    public_text : str
        File of public sentences, one a line, that shift, scale and projection are fitted on, the same on every device;
        empty: those of the package.
    codec : str
        Number format of uploaded values: nf4, fp4, int8, fp8, fp16, fp32, or a registered one.
    """

    num_blocks: int = number(0, at_least=0)
    sampling: str = one_of("auto", "auto", "uniform", "top-heavy", "upper", "spread")
    layers: list[int] = field(default_factory=list)
    pivot: str = "auto"
    bi_encoder: bool | None = None
    standardise: bool = False
    clip_norm: float = number(0.0, at_least=0)
    noise_sigma: float = number(0.0, at_least=0)
    projection: int = number(0, at_least=0)
    upload_kib: int = number(560, at_least=1)
    public_text: str = ""
    keep: float = field(default=1.0, metadata={"above 0 and at most 1": lambda value: 0 < value <= 1})
    codec: str = "nf4"


ALWAYS, NEVER = "always", "never"
"""Values of `privacy.secure-sums` beside auto."""


@dataclass
class PrivacySettings:
    """What a device agrees to.

    Parameters
    ----------
    max_releases : int
        Most releases of one text, whatever runs ask; 0: counted, not bounded.
    max_evaluations : int
        Most metrics that the device reports on its test samples, whatever runs ask; 0: counted, not bounded.
    metric_epsilon : float
        ε, for each test sample, of the noise on each accuracy that the device reports; 0: exact. It counts in `budget`.
    joint_epsilon : float
        ε of one sample, its projected vector and its label together (`LabelledCap`, δ = 0); 0: off.
    activation_epsilon : float
        ε of the Gaussian mechanism on a sample's projected or clipped activations alone; 0: off.
    delta : float
        δ of the Gaussian mechanism.
    label_epsilon : float
        ε of randomized response on a sample's label alone; 0: off.
    mixing : str
        Name of the fleet's secret rotation (`mobillm mixing-key` prints it); empty: none. Obfuscation, no guarantee.
    mixing_key : str
        On a device: the file with that key. It stays there.
    min_samples : int
        With strategy `analytic`: fewest samples of which a device sends sums.
    secure_sums : str
        With strategy `analytic`: whether the server gets only the sum of a group of devices: always, never, or auto,
        which means always if each backbone type has a third more devices than `secure_sums_devices`, otherwise never. A
        device whose own settings say always never sends its own sums.
    secure_sums_devices : int
        Fewest devices of a secure sum.
    central_epsilon : float
        With strategy `analytic`: ε of one sample, or one device, in the sums of all devices; the noise is added by the
        server, which is trusted with the sums. 0: none.
    unit : str
        What `central_epsilon` protects: sample or device.
    device_rows : int
        With unit `device`: samples that a device counts for at most; 0: as `min_samples`.
    budget : float
        Most ε that everything released of one text may add up to, whatever runs ask; 0: what one release takes.
    """

    max_releases: int = number(0, at_least=0)
    max_evaluations: int = number(0, at_least=0)
    metric_epsilon: float = number(0.0, at_least=0)
    joint_epsilon: float = number(0.0, at_least=0)
    activation_epsilon: float = number(0.0, at_least=0)
    delta: float = number(1e-5, above=0, below=1)
    label_epsilon: float = number(0.0, at_least=0)
    mixing: str = ""
    mixing_key: str = ""
    min_samples: int = number(10, at_least=1)
    secure_sums: str = one_of("auto", "auto", ALWAYS, NEVER)
    secure_sums_devices: int = number(6, at_least=3)
    central_epsilon: float = number(0.0, at_least=0)
    unit: str = one_of("sample", "sample", "device")
    device_rows: int = number(0, at_least=0)
    budget: float = number(0.0, at_least=0)
