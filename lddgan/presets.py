"""The presets: one for each model, of each only what differs from the defaults.

Sources: the released code of LDDGAN, and of DDGAN (denoising-diffusion-gan) and WDDGAN (WaveDiff),
for shapes, schedules and recipes; arXiv 2406.11713 for figures.
"""

from __future__ import annotations

from lddgan.errors import BadInput
from lddgan.networks.configs import (
    HaarConfig,
    KlConfig,
    LargeConfig,
    NcsnppConfig,
    PixelsConfig,
    SmallConfig,
    UVitConfig,
    VqConfig,
    WaveletConfig,
)
from lddgan.preset import AutoencoderTraining, Paper, Training
from lddgan.preset import Preset as Preset

# fmt: off
CIFAR10 = Preset(  # FID 2.98 (Tables 3-4; Tables 6-7 have 3.03)
    name="cifar10", image_size=32, latent_channels=4, latent_size=16, scale_factor=105.0, steps=4,
    generator=NcsnppConfig(nf=128, ch_mult=(1, 2, 2), nz=50, mapping_layers=4),
    autoencoder=KlConfig(ch_mult=(1, 2), attention=(16,), tanh=True, dropout=0.2),
    discriminator=SmallConfig(layers=3),
    training=Training(
        lr_g=1.6e-4, lr_d=1.25e-4, batch=256, epochs=1700, ema_decay=0.9999,
        r1_gamma=0.02, r1_every=15,
    ),
    autoencoder_training=AutoencoderTraining(lr=1e-4, batch=64, epochs=200, disc_start=20_000),
    paper=Paper(
        source="Table 3", fid=2.98, recall=0.58, seconds=0.08,
        differences="Table 8 has nz 25, the released code 50",
    ),
)

CELEBA_256 = Preset(  # FID 5.21 (Table 4; Tables 6-7 have 5.83)
    name="celeba_256", image_size=256, latent_channels=3, latent_size=64, scale_factor=6.0, steps=2,
    generator=NcsnppConfig(
        nf=128, ch_mult=(1, 2, 2, 2), attention=(16,), nz=100, mapping_layers=3
    ),
    autoencoder=VqConfig(ch_mult=(1, 2, 4)),
    discriminator=LargeConfig(layers=4),
    training=Training(
        lr_g=2e-4, lr_d=1e-4, batch=128, epochs=500, ema_decay=0.999, r1_gamma=2.0, r1_every=10
    ),
    autoencoder_training=AutoencoderTraining(lr=7.2e-5, batch=16, epochs=200, disc_weight=0.75),
    paper=Paper(
        source="Table 4", fid=5.21, recall=0.40, seconds=0.55,
        differences="Table 1 has a latent of 4x64x64, the released code 3x64x64; Table 8 nz 25 and "
        "four mapping layers, the released code 100 and three",
    ),
)

LSUN = Preset(  # FID 4.67 (Table 5); nz 100 as in the released test, 50 in the released training
    name="lsun", image_size=256, latent_channels=4, latent_size=32, scale_factor=60.0, steps=4,
    generator=NcsnppConfig(
        nf=128, ch_mult=(1, 2, 2, 2), blocks=3, attention=(16,), nz=100, mapping_layers=3
    ),
    autoencoder=KlConfig(ch_mult=(1, 2, 4, 4)),
    discriminator=LargeConfig(layers=4),
    training=Training(
        lr_g=2e-4, lr_d=1e-4, batch=128, epochs=1000, ema_decay=0.999, r1_gamma=1.0, r1_every=10,
        reconstruction=False,
    ),
    autoencoder_training=AutoencoderTraining(lr=7.2e-5, batch=16, epochs=5),
    paper=Paper(
        source="Table 5", fid=4.67, recall=0.42, seconds=1.02,
        differences="Table 1 has a latent of 3x32x32, the released code 4x32x32; Table 8 nz 25, "
        "four mapping layers and two blocks, the released code 100, three and three",
    ),
)

DIGITS = Preset(  # scikit-learn's 1,797 scans, 8x8 -> 32x32; sizes set by bench/studies/digits.py
    name="digits", image_size=32, latent_channels=4, latent_size=8, scale_factor=1.0, steps=4,
    beta_max=6.0,  # 256 latent values: at 20 only the last two steps have any signal
    generator=NcsnppConfig(
        nf=40, ch_mult=(1, 1), blocks=1, nz=50, mapping_layers=2, z_emb_dim=64
    ),
    autoencoder=KlConfig(ch=32, ch_mult=(1, 1, 1), blocks=1),
    discriminator=SmallConfig(ngf=16, layers=3, t_emb_dim=128),
    training=Training(
        lr_g=4e-4, lr_d=5e-4, lr_min=2e-5, batch=64, epochs=220, ema_decay=0.999,
        r1_gamma=0.05, r1_every=15, delta=1.0, flip=False,
    ),
    autoencoder_training=AutoencoderTraining(
        lr=1e-3, lr_min=1e-5, batch=64, epochs=25,
        kl_weight=1e-2, perceptual_weight=0.0, disc_weight=0.0, covered=0.95,
    ),
)

EMOJI = Preset(  # heads of Noto's emoji, 64x64; docs/emoji.md
    name="emoji", image_size=64, latent_channels=8, latent_size=8, scale_factor=1.0, steps=4,
    beta_max=8.0,  # 512 latent values; as digits'
    generator=NcsnppConfig(
        nf=40, ch_mult=(1, 1), blocks=1, nz=50, mapping_layers=2, z_emb_dim=64
    ),
    autoencoder=KlConfig(ch=32, groups=8, ch_mult=(1, 1, 1, 2), blocks=1),
    discriminator=SmallConfig(ngf=16, layers=3, t_emb_dim=128),
    training=Training(
        lr_g=4e-4, lr_d=5e-4, lr_min=2e-5, batch=64, epochs=700, ema_decay=0.999,
        r1_gamma=0.05, r1_every=15, delta=1.0,
    ),
    autoencoder_training=AutoencoderTraining(
        lr=1e-3, lr_min=1e-5, batch=16, epochs=45,
        kl_weight=2e-5, perceptual_weight=0.0, disc_weight=0.0, covered=0.99,
    ),
)

# ---- the predecessors: recipes of their projects' commands, batches of all GPUs together ----

DDGAN_CIFAR10 = Preset(
    name="ddgan-cifar10", image_size=32, latent_channels=3, latent_size=32, scale_factor=1.0,
    steps=4,
    generator=NcsnppConfig(
        nf=128, ch_mult=(1, 2, 2, 2), attention=(16,), nz=100, mapping_layers=4
    ),
    autoencoder=PixelsConfig(),
    discriminator=SmallConfig(layers=4),
    training=Training(
        lr_g=1.6e-4, lr_d=1.25e-4, lr_min=1e-5, batch=256, epochs=1800, ema_decay=0.9999,
        r1_gamma=0.02, r1_every=15, reconstruction=False,
    ),
    paper=Paper(source="Table 3", seconds=0.21, parameters=48.43),
)

DDGAN_CELEBA_256 = Preset(
    name="ddgan-celeba_256", image_size=256, latent_channels=3, latent_size=256, scale_factor=1.0,
    steps=2,
    generator=NcsnppConfig(
        nf=64, ch_mult=(1, 1, 2, 2, 4, 4), attention=(16,), nz=100, mapping_layers=3
    ),
    autoencoder=PixelsConfig(),
    discriminator=LargeConfig(layers=6),
    training=Training(
        lr_g=2e-4, lr_d=1e-4, lr_min=1e-5, batch=32, epochs=800, ema_decay=0.9999,
        r1_gamma=2.0, r1_every=10, reconstruction=False,
    ),
    paper=Paper(source="Table 4", seconds=1.73, parameters=39.73),
)

DDGAN_LSUN = Preset(
    name="ddgan-lsun", image_size=256, latent_channels=3, latent_size=256, scale_factor=1.0,
    steps=4,
    generator=DDGAN_CELEBA_256.generator,
    autoencoder=PixelsConfig(),
    discriminator=LargeConfig(layers=6),
    training=Training(
        lr_g=1.6e-4, lr_d=1e-4, lr_min=1e-5, batch=64, epochs=500, ema_decay=0.999,
        r1_gamma=1.0, r1_every=10, reconstruction=False,
    ),
    paper=Paper(source="Table 5", seconds=3.42, parameters=39.73),
)

WDDGAN_CIFAR10 = Preset(  # coefficients are halved in training
    name="wddgan-cifar10", image_size=32, latent_channels=12, latent_size=16, scale_factor=2.0,
    steps=4,
    generator=NcsnppConfig(nf=128, ch_mult=(1, 2, 2), nz=100, mapping_layers=4),
    autoencoder=HaarConfig(bands=("LL", "HL", "LH", "HH")),
    discriminator=SmallConfig(layers=3),
    training=Training(
        lr_g=1.6e-4, lr_d=1.25e-4, lr_min=1e-5, batch=256, epochs=1800, ema_decay=0.9999,
        r1_gamma=0.02, r1_every=15, delta=None,
    ),
    paper=Paper(source="Table 3", seconds=0.08, parameters=33.37),
)

WDDGAN_CELEBA_256 = Preset(
    name="wddgan-celeba_256", image_size=256, latent_channels=12, latent_size=128,
    scale_factor=2.0, steps=2,
    generator=WaveletConfig(
        nf=64, ch_mult=(1, 2, 2, 2, 4), attention=(16,), nz=100, mapping_layers=3
    ),
    autoencoder=HaarConfig(bands=("LL", "LH", "HL", "HH")),
    discriminator=LargeConfig(layers=5),
    training=Training(
        lr_g=2e-4, lr_d=1e-4, lr_min=1e-5, batch=64, epochs=500, ema_decay=0.9999,
        r1_gamma=2.0, r1_every=10, delta=None,
    ),
    paper=Paper(source="Table 4", seconds=0.60, parameters=31.49),
)

WDDGAN_LSUN = Preset(
    name="wddgan-lsun", image_size=256, latent_channels=12, latent_size=128, scale_factor=2.0,
    steps=4,
    generator=WDDGAN_CELEBA_256.generator,
    autoencoder=HaarConfig(bands=("LL", "HL", "LH", "HH")),
    discriminator=LargeConfig(layers=5),
    training=Training(
        lr_g=1.6e-4, lr_d=1e-4, lr_min=1e-5, batch=64, epochs=500, ema_decay=0.999,
        r1_gamma=1.0, r1_every=10, delta=None,
    ),
    paper=Paper(source="Table 5", seconds=1.54, parameters=31.49),
)

# ---- U-ViT in the place of NCSN++ on the cifar10 latent ----


def vit(name: str, seconds: float, parameters: float, generator: UVitConfig) -> Preset:
    """The cifar10 preset with a U-ViT, whose sizes are not published."""
    paper = Paper(
        source="Table 12", seconds=seconds, parameters=parameters,
        differences="sizes of the network are not published: chosen to come near Table 11's count",
    )
    return CIFAR10.model_copy(update={"name": name, "generator": generator, "paper": paper})


VIT_TINY = vit("vit-tiny", 0.06, 28.01, UVitConfig(
    width=384, depth=9, heads=6, nz=50, mapping_layers=4, z_emb_dim=128
))
VIT_MID = vit("vit-mid", 0.09, 43.32, UVitConfig(
    width=512, depth=9, heads=8, nz=50, mapping_layers=4
))
VIT_LARGE = vit("vit-large", 0.13, 56.17, UVitConfig(
    width=512, depth=13, heads=8, nz=50, mapping_layers=4, z_emb_dim=128
))
# fmt: on

PRESETS = {
    preset.name: preset
    for preset in (
        *(CIFAR10, CELEBA_256, LSUN, DIGITS, EMOJI),
        *(DDGAN_CIFAR10, DDGAN_CELEBA_256, DDGAN_LSUN),
        *(WDDGAN_CIFAR10, WDDGAN_CELEBA_256, WDDGAN_LSUN),
        *(VIT_TINY, VIT_MID, VIT_LARGE),
    )
}


def get_preset(name: str) -> Preset:
    """The preset called `name`. Raises BadInput naming the known ones."""
    if name not in PRESETS:
        raise BadInput(f"unknown data set '{name}'; known: {', '.join(PRESETS)}")
    return PRESETS[name]
