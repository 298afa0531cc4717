"""The catalogue: which distribution offers which name, so that an error can say what to install. It imports nothing of them."""

from __future__ import annotations

from typing import NamedTuple


class Known(NamedTuple):
    """A component that exists somewhere: ``folder`` is where a checkout of the repository keeps it."""

    kind: str
    name: str
    distribution: str
    folder: str
    summary: str


KNOWN: tuple[Known, ...] = (
    Known("aggregator", "secagg-plus", "pppml-secagg-plus", "plugins/aggregators/secagg_plus", "masked sums with dropout recovery"),
    Known("aggregator", "cyclic-he", "pppml-cyclic-he", "plugins/aggregators/cyclic_he", "homomorphic sums along rings of sites"),
    Known("aggregator", "he-fedavg", "pppml-he-fedavg", "plugins/aggregators/he_fedavg", "homomorphic sums at the server, one key"),
    Known("personalization", "per-fedavg", "pppml-perfedavg", "plugins/personalization/perfedavg", "meta-learned start for each site"),
    *(
        Known("personalization", name, "pppml-personalization-baselines", "plugins/personalization/baselines", summary)
        for name, summary in (
            ("apfl", "each site mixes its own and the shared model"),
            ("ditto", "own models, held near the shared one"),
            ("fedavg-finetune", "FedAvg, then fine-tuning at each site"),
            ("fedbn", "normalization stays at the site"),
            ("fedper", "the head stays at the site"),
            ("fedprox", "local training held near the shared model"),
            ("fedrep", "the head stays at the site, trained before the body"),
        )
    ),
    Known("privacy", "clip-only", "pppml-dp", "plugins/privacy/dp", "clipping without noise, which guarantees nothing"),
    Known("privacy", "dp-sgd", "pppml-dp", "plugins/privacy/dp", "clipped and noised gradients with accounting"),
    Known("privacy", "dp-update", "pppml-dp", "plugins/privacy/dp", "clipped and noised updates of whole sites"),
    Known("attack", "dp-audit", "pppml-dp-audit", "plugins/attacks/dp_audit", "lower bound of epsilon from canaries"),
    Known("attack", "gallery", "pppml-gallery", "plugins/attacks/gallery", "picks the patient out of candidate images"),
    Known("attack", "he-key-recovery", "pppml-he-key-recovery", "plugins/attacks/he_key_recovery", "a CKKS key from published sums"),
    *(
        Known("attack", name, "pppml-idlg", "plugins/attacks/idlg", summary)
        for name, summary in (
            ("dlg", "images and labels by gradient matching"),
            ("idlg", "images from gradients, hardened and adaptive"),
            ("idlg-published", "images from gradients, as in the authors' code"),
            ("inverting-gradients", "images from gradients by cosine and total variation"),
        )
    ),
    Known("attack", "imprint", "pppml-imprint", "plugins/attacks/imprint", "images read out of linear layers, through sums"),
    Known("model", "imprint-front", "pppml-imprint", "plugins/attacks/imprint", "another network behind a linear layer on the whole image"),
    Known("attack", "label-restoration", "pppml-label-restoration", "plugins/attacks/label_restoration", "label counts and lesion area"),
    Known("attack", "membership", "pppml-membership", "plugins/attacks/membership", "whether an image was trained on"),
    Known("attack", "site-inference", "pppml-site-inference", "plugins/attacks/site_inference", "which hospital an image is from"),
    Known("task", "blood-cells", "pppml-blood-cells", "plugins/tasks/blood_cells", "blood cell classification"),
    Known("task", "chest-ct", "pppml-chest-ct", "plugins/tasks/chest_ct", "chest CT volume classification"),
    Known("task", "image-set", "pppml-image-set", "plugins/tasks/image_set", "your own images, classified or segmented"),
    Known("task", "lung-lesions", "pppml-lung-lesions", "plugins/tasks/lung_lesions", "lung lesion segmentation in chest CT"),
    *(
        Known("model", name, "pppml-dpresnet", "plugins/privacy/dpresnet", summary)
        for name, summary in (
            ("dp-resnet9", "the DPResNet authors' network"),
            ("group-normed", "another network with group normalization"),
            ("linear-head", "a linear layer on frozen features"),
            ("scale-resnet9", "ResNet-9 with ScaleNorm"),
        )
    ),
    Known("model", "sigmoid-lenet", "pppml-idlg", "plugins/attacks/idlg", "the network of the gradient matching papers"),
    Known("model", "densenet", "pppml-monai-nets", "plugins/models/monai_nets", "MONAI's DenseNet, 2-D and 3-D"),
    Known("model", "monai", "pppml-monai-nets", "plugins/models/monai_nets", "any MONAI network by name"),
    Known("model", "small-cnn", "pppml-monai-nets", "plugins/models/monai_nets", "small convolutional network"),
    Known("model", "unet", "pppml-monai-nets", "plugins/models/monai_nets", "MONAI's U-Net, 2-D and 3-D"),
    Known("he-backend", "pyfhel", "pppml-he-pyfhel", "plugins/aggregators/he_pyfhel", "homomorphic encryption with Pyfhel"),
    Known("he-backend", "tenseal", "pppml-he-tenseal", "plugins/aggregators/he_tenseal", "homomorphic encryption with TenSEAL"),
    Known("engine", "flower", "pppml-flower", "plugins/engines/flower", "sites over Flower"),
    Known("engine", "nvflare", "pppml-nvflare", "plugins/engines/nvflare", "sites over NVFlare"),
    Known("reporter", "mlflow", "pppml-mlflow", "plugins/reporters/mlflow", "events to MLflow"),
    Known("reporter", "tensorboard", "pppml-tensorboard", "plugins/reporters/tensorboard", "events to TensorBoard"),
)


def known(kind: str, name: str) -> Known | None:
    """The catalogue's entry of that kind and name."""
    return next((entry for entry in KNOWN if (entry.kind, entry.name) == (kind, name)), None)
