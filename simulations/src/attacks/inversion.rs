//! Gradient inversion: a training image is rebuilt from one visible update.
//!
//! The attacker knows the model that the round began with and sees one tenant's update after one step
//! on one image. It looks for the image whose gradient points the same way, as smooth as it can be.
//!
//! Sources: Zhu et al. 2019, arXiv:1906.08935 (matching gradients); Geiping et al. 2020,
//! arXiv:2003.14053 (cosine distance and total variation); Zhao et al. 2020, arXiv:2001.02610 (the
//! label from the last bias).

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tributary_agent::train::{LocalTask, Trainer};
use tributary_coordinator::registry::initial_parameters;
use tributary_privacy::{
    accountant::{Delta, calibrate_noise_multiplier},
    clip::{ClippingNorm, clip_l2},
    lattice::{Lattice, ModularSum},
    mechanism::NoisyGradientSum,
    noise::SeededNoise,
};
use tributary_protocol::{job::TrainingPlan, model::ModelSpec};

use super::{
    AttackError, AttackName, Findings, Images, Row, Sight, Size, masked,
    network::{Network, add_scaled, dot},
    proceed,
    quality::{psnr, ssim},
};

const HIDDEN: u32 = 48;
const DELTA: f64 = 1e-5;
const CLIPPING_NORM: f64 = 1.0;
/// ε of the one step that is seen.
const EPSILONS: [f64; 4] = [50.0, 8.0, 4.0, 1.0];
/// Tenants in the sum that secure aggregation shows.
const COHORT: usize = 10;
/// Weight of the total variation beside the cosine distance.
const SMOOTHNESS: f64 = 1e-3;
/// The grid of masked uploads.
const LATTICE_STEP: f64 = 1e-5;
const LATTICE_BITS: u8 = 24;

/// Rebuilds images from what each defence shows.
///
/// Measures: `psnr_db` and `ssim` of the best match, means over the images.
///
/// # Errors
/// [`AttackError`].
pub fn run(images: &Images, size: Size, seed: u64) -> Result<Findings, AttackError> {
    let (victims, steps) = match size {
        Size::Full => (6, 400),
        Size::Small => (1, 150),
    };
    let spec = images.model(HIDDEN);
    let base = initial_parameters(&spec, seed);
    let network = Network::new(spec.num_inputs(), HIDDEN as usize, spec.num_classes(), &base);
    let scene = Scene { images, spec: &spec, base: &base, network: &network, steps };
    let mut findings = Findings {
        attack: AttackName::Inversion,
        setting: format!(
            "The attacker knows the base model and looks for the image whose gradient points where \
             the update of one step on one image points. With secure aggregation it sees the sum of \
             {COHORT} tenants, and masked uploads."
        ),
        rows: Vec::new(),
        pictures: Vec::new(),
    };
    for victim in 0..victims {
        let truth = scene.image(victim);
        findings.pictures.push(Sight {
            caption: format!("image {victim}"),
            side: images.side,
            pixels: truth,
        });
    }
    scene.attack(&mut findings, "none", None, victims, seed, &|victim, _| scene.plain(victim))?;
    for epsilon in EPSILONS {
        let name = format!("record DP, epsilon {epsilon}");
        scene.attack(&mut findings, &name, Some(epsilon), victims, seed, &|victim, seed| {
            scene.private(victim, epsilon, seed)
        })?;
    }
    scene.attack(
        &mut findings,
        "secure aggregation, the sum",
        None,
        victims,
        seed,
        &|victim, _| scene.sum(victim),
    )?;
    scene.attack(
        &mut findings,
        "secure aggregation, one upload",
        None,
        victims,
        seed,
        &|at, seed| scene.masked(at, seed),
    )?;
    Ok(findings)
}

struct Scene<'a> {
    images: &'a Images,
    spec: &'a ModelSpec,
    base: &'a [f32],
    network: &'a Network,
    steps: u32,
}

impl Scene<'_> {
    fn image(&self, index: usize) -> Vec<f64> {
        self.images.train.features(index).into_iter().map(f64::from).collect()
    }

    fn plan() -> TrainingPlan {
        toml::from_str(
            "local_steps = 1\nsampling_rate = 1.0\nbatch_size_expected = 1\n\
             client_learning_rate = 1.0\nupdate_norm_max = 1e6\n",
        )
        .expect("the plan is well-formed")
    }

    /// A tenant's update without any defence.
    fn plain(&self, victim: usize) -> Result<Vec<f64>, AttackError> {
        let mut trainer = Trainer::new(self.spec, 1)?;
        trainer.load(self.base)?;
        trainer.step(&self.images.train, &[victim as u32], 1.0)?;
        Ok(trainer.update(self.base)?.into_iter().map(f64::from).collect())
    }

    /// A tenant's update by DP-SGD.
    fn private(&self, victim: usize, epsilon: f64, seed: u64) -> Result<Vec<f64>, AttackError> {
        let multiplier = calibrate_noise_multiplier(epsilon, Delta::new(DELTA)?, 1.0, 1)?;
        let norm = ClippingNorm::new(CLIPPING_NORM)?;
        let mechanism = NoisyGradientSum::new(norm, multiplier, self.base.len())?;
        let (plan, train) = (Self::plan(), [victim as u32]);
        let task = LocalTask {
            spec: self.spec,
            base: self.base,
            data: &self.images.train,
            train: &train,
            plan: &plan,
        };
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8] = victim as u8;
        let mut noise = SeededNoise::from_seed(key);
        let update =
            Trainer::new(self.spec, 1)?.dp_sgd(&task, &mechanism, &mut noise, &mut proceed)?;
        Ok(update.into_iter().map(f64::from).collect())
    }

    /// What the coordinator gets to see of a cohort: the sum.
    fn sum(&self, victim: usize) -> Result<Vec<f64>, AttackError> {
        let mut sum = vec![0.0; self.base.len()];
        for member in 0..COHORT {
            let image = (victim + member * 97) % self.images.train.len();
            add_scaled(&mut sum, &self.plain(image)?, 1.0);
        }
        Ok(sum)
    }

    /// A tenant's upload under its masks, read as if it had none.
    fn masked(&self, victim: usize, seed: u64) -> Result<Vec<f64>, AttackError> {
        let lattice = Lattice::new(LATTICE_STEP, LATTICE_BITS)?;
        let mut update: Vec<f32> =
            self.plain(victim)?.into_iter().map(|value| value as f32).collect();
        let norm = ClippingNorm::new(CLIPPING_NORM)?;
        clip_l2(&mut update, norm)?;
        let grid = lattice.quantize(&update, norm)?;
        let upload = masked::upload(&grid, lattice, COHORT as u32, seed ^ victim as u64)?;
        let mut read = ModularSum::new(lattice, upload.len());
        read.add_grid(&upload.into_iter().map(i64::from).collect::<Vec<_>>())?;
        Ok(lattice.dequantize_sum(read.values()))
    }

    fn attack(
        &self,
        findings: &mut Findings,
        defence: &str,
        epsilon: Option<f64>,
        victims: usize,
        seed: u64,
        observe: &dyn Fn(usize, u64) -> Result<Vec<f64>, AttackError>,
    ) -> Result<(), AttackError> {
        let (mut decibels, mut similarity) = (0.0, 0.0);
        for victim in 0..victims {
            let update = observe(victim, seed)?;
            // The update descends.
            let gradient: Vec<f64> = update.iter().map(|value| -value).collect();
            let rebuilt = invert(self.network, &gradient, self.images.side, self.steps, seed);
            let truth = self.image(victim);
            decibels += psnr(&rebuilt, &truth);
            similarity += ssim(&rebuilt, &truth, self.images.side);
            findings.pictures.push(Sight {
                caption: format!("{defence}, image {victim}"),
                side: self.images.side,
                pixels: rebuilt,
            });
        }
        let count = victims as f64;
        findings.rows.push(Row {
            defence: defence.to_owned(),
            epsilon,
            measures: vec![("psnr_db", decibels / count), ("ssim", similarity / count)],
        });
        Ok(())
    }
}

/// Looks for the image with a gradient.
///
/// - `gradient`: by parameters, as far as the attacker sees it
/// - returns: brightness in [0, 1]
fn invert(network: &Network, gradient: &[f64], side: usize, steps: u32, seed: u64) -> Vec<f64> {
    let (_, _, bias) = network.offsets();
    // Only the true class's error is negative.
    let label = (0..network.classes)
        .min_by(|&a, &b| gradient[bias + a].total_cmp(&gradient[bias + b]))
        .expect("a classifier has classes");
    let mut draw = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut image: Vec<f64> = (0..network.inputs).map(|_| draw.random_range(0.2..0.8)).collect();
    let (mut first, mut second) = (vec![0.0; image.len()], vec![0.0; image.len()]);
    let length = dot(gradient, gradient).sqrt().max(1e-12);
    for step in 1..=steps {
        let own = network.gradients(&image, label).parameters;
        let own_length = dot(&own, &own).sqrt().max(1e-12);
        let cosine = dot(&own, gradient) / (own_length * length);
        // The slope of 1 − cosine by the own gradient.
        let direction: Vec<f64> = own
            .iter()
            .zip(gradient)
            .map(|(own, seen)| {
                -(seen / (own_length * length) - cosine * own / (own_length * own_length))
            })
            .collect();
        let mut slope = network.mixed(&image, label, &direction);
        add_roughness(&mut slope, &image, side);
        let rate = 0.1 * (1.0 - f64::from(step) / f64::from(steps + 1));
        adam(&mut image, &slope, &mut first, &mut second, step as i32, rate);
    }
    image
}

/// Adds the slope of the total variation.
fn add_roughness(slope: &mut [f64], image: &[f64], side: usize) {
    let weight = SMOOTHNESS / side as f64;
    for place in 0..image.len() {
        let right = (!(place + 1).is_multiple_of(side)).then_some(place + 1);
        let below = (place + side < image.len()).then_some(place + side);
        for neighbour in [right, below].into_iter().flatten() {
            let difference = image[place] - image[neighbour];
            let pull = weight * difference / (difference.abs() + 1e-3);
            slope[place] += pull;
            slope[neighbour] -= pull;
        }
    }
}

/// One step of Adam within [0, 1].
fn adam(
    image: &mut [f64],
    slope: &[f64],
    first: &mut [f64],
    second: &mut [f64],
    step: i32,
    rate: f64,
) {
    let (correct_first, correct_second) = (1.0 - 0.9_f64.powi(step), 1.0 - 0.999_f64.powi(step));
    for (((pixel, slope), first), second) in image.iter_mut().zip(slope).zip(first).zip(second) {
        *first = 0.9 * *first + 0.1 * slope;
        *second = 0.999 * *second + 0.001 * slope * slope;
        let root = (*second / correct_second).sqrt() + 1e-12;
        *pixel = (*pixel - rate * (*first / correct_first) / root).clamp(0.0, 1.0);
    }
}
