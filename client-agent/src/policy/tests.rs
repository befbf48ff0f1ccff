use tributary_privacy::{
    accountant::{Delta, epsilon},
    mechanism::PrivacyEvent,
};
use tributary_protocol::{
    error_code::ErrorCode,
    id::{Digest, RoundNumber},
    job::JobSpec,
    message::{Assignment, BaseModel, BlobRef, LatticeSpec},
};

use super::*;

const JOB: &str = r#"
    name = "census"
    dataset = "adult"
    regions = ["eu"]
    [model.mlp]
    inputs = 10
    hidden = [4]
    classes = 2
    [training]
    local_steps = 10
    sampling_rate = 0.02
    batch_size_expected = 64
    client_learning_rate = 0.1
    [privacy]
    trust = "local"
    unit = "record"
    clipping_norm = 1.0
    noise_multiplier = 1.0
    delta = 1e-5
    [round]
    rounds = 3
    cohort_size = 4
    cohort_size_min = 2
    report_goal = 3
"#;

const POLICY: &str = r#"
    regions = ["eu"]
    [datasets.adult]
    epsilon_max = 8.0
    delta = 1e-5
    units = ["record", "tenant"]
    families = ["mlp"]
    noise_multiplier_min = 0.5
    examples_max = 1000
    sampling_rate_max = 0.1
    local_steps_max = 50
    parameters_max = 100
    cohort_size_min = 2
"#;

fn policy(text: &str) -> Policy {
    Policy::parse(text, &Site::new("/site")).unwrap()
}

pub(crate) fn assignment(text: &str) -> Assignment {
    let job: JobSpec = toml::from_str(text).unwrap();
    let base = BaseModel {
        job: job.name.clone(),
        dataset: job.dataset.clone(),
        model: job.model.clone(),
        version: 0,
        file: BlobRef { digest: Digest::of(b"base"), length: 4 },
    };
    let lattice = LatticeSpec { step: 1e-5, bits: 32 };
    Assignment { job, round: RoundNumber(1), base, lattice, report_within_ms: 1000, control: None }
}

fn configured() -> Vec<DatasetName> {
    vec![DatasetName::new("adult").unwrap()]
}

#[test]
fn an_allowed_job_gives_its_cost() {
    let approved = policy(POLICY).check(&assignment(JOB), &configured()).unwrap();
    assert_eq!(approved.budget.epsilon_max, 8.0);
    assert_eq!(approved.examples_max, Some(1000));
    let event =
        PrivacyEvent::PoissonGaussian { sampling_rate: 0.02, noise_multiplier: 1.0, steps: 10 };
    costs_barely_more(&approved.events, &[event]);
    let tenant = assignment(&JOB.replace("\"record\"", "\"tenant\""));
    let approved = policy(POLICY).check(&tenant, &configured()).unwrap();
    let event = PrivacyEvent::Gaussian { noise_multiplier: 1.0, count: 1 };
    costs_barely_more(&approved.events, &[event]);
}

/// Noise on integers costs a little more than the continuous noise that it stands for.
fn costs_barely_more(events: &[PrivacyEvent], continuous: &[PrivacyEvent]) {
    let delta = Delta::new(1e-5).unwrap();
    let (cost, least) = (epsilon(events, delta).unwrap(), epsilon(continuous, delta).unwrap());
    assert!((1.0..1.001).contains(&(cost / least)), "{events:?}: {cost}, not {least}");
}

#[test]
fn the_sample_is_a_policy() {
    let policy = policy(include_str!("../../../examples/config/policy.toml"));
    assert!(!policy.datasets.is_empty());
}

#[test]
fn a_job_without_regions_passes_and_a_policy_without_regions_allows_any() {
    let anywhere = assignment(&JOB.replace("regions = [\"eu\"]", ""));
    policy(POLICY).check(&anywhere, &configured()).unwrap();
    let far = assignment(&JOB.replace("\"eu\"", "\"us\""));
    policy(&POLICY.replace("regions = [\"eu\"]", "")).check(&far, &configured()).unwrap();
}

#[test]
fn every_refusal_names_key_and_values() {
    let cases = [
        ("\"eu\"]", "\"eu\", \"us\"]", ErrorCode::PolicyForbids, ["regions", "\"us\""]),
        ("\"adult\"", "\"other\"", ErrorCode::PolicyForbids, ["datasets.other", "adult"]),
        (
            "noise_multiplier = 1.0",
            "noise_multiplier = 0.4",
            ErrorCode::PolicyForbids,
            ["noise_multiplier_min", "0.4"],
        ),
        ("delta = 1e-5", "delta = 1e-4", ErrorCode::PolicyForbids, ["`delta`", "0.0001"]),
        (
            "sampling_rate = 0.02",
            "sampling_rate = 0.2",
            ErrorCode::PolicyForbids,
            ["sampling_rate_max", "0.2"],
        ),
        (
            "local_steps = 10",
            "local_steps = 51",
            ErrorCode::PolicyForbids,
            ["local_steps_max", "51"],
        ),
        ("hidden = [4]", "hidden = [40]", ErrorCode::PolicyForbids, ["parameters_max", "522"]),
        (
            "cohort_size_min = 2",
            "cohort_size_min = 1",
            ErrorCode::PolicyForbids,
            ["cohort_size_min", "1"],
        ),
        (
            "clipping_norm = 1.0",
            "clipping_norm = -1.0",
            ErrorCode::JobInvalid,
            ["privacy.clipping_norm", "-1"],
        ),
        (
            "noise_multiplier = 1.0",
            "noise_multiplier = 1e6",
            ErrorCode::JobInvalid,
            ["noise_multiplier", "400"],
        ),
    ];
    for (from, to, code, words) in cases {
        let asked = assignment(&JOB.replace(from, to));
        let refusal = policy(POLICY).check(&asked, &configured()).unwrap_err().refusal();
        assert_eq!(refusal.code, code, "{refusal}");
        for word in words {
            assert!(refusal.message.contains(word), "{word}: {refusal}");
        }
    }
}

#[test]
fn lists_are_enforced() {
    for (from, to, asked, key) in [
        ("[\"record\", \"tenant\"]", "[\"tenant\"]", "record", "units"),
        ("[\"mlp\"]", "[\"cnn\"]", "mlp", "families"),
    ] {
        let policy = policy(&POLICY.replace(from, to));
        let refusal = policy.check(&assignment(JOB), &configured()).unwrap_err().refusal();
        assert_eq!(refusal.code, ErrorCode::PolicyForbids);
        assert!(refusal.message.contains(asked) && refusal.message.contains(key), "{refusal}");
    }
}

#[test]
fn distributed_trust_needs_a_word_of_the_policy_and_a_cohort_to_hide_in() {
    let job = JOB
        .replace("\"local\"", "\"distributed\"")
        .replace("local_steps = 10", "local_steps = 1")
        .replace("cohort_size_min = 2", "cohort_size_min = 3")
        + "[secagg]\nadversary = \"semi-honest\"\ndropout_max = 0.2\ncorrupt_max = 0.1\n";
    let trusting = POLICY.replace(
        "[datasets.adult]",
        "[secagg]\ncohort_size_min = 3\n[datasets.adult]\ntrusts = [\"distributed\"]",
    );
    policy(&trusting).check_job(&assignment(&job).job, &configured()).unwrap();
    for (text, words) in [
        (POLICY.to_owned(), ["distributed", "trusts"]),
        (trusting.replace("size_min = 3\n[d", "size_min = 4\n[d"), ["cohort_size_min", "4"]),
        (
            trusting.replace("size_min = 3\n[d", "size_min = 3\ncorrupt_min = 0.3\n[d"),
            ["corrupt", "0.3"],
        ),
        (
            trusting.replace(
                "size_min = 3\n[d",
                "size_min = 3\nadversaries = [\"malicious-coordinator\"]\n[d",
            ),
            ["SemiHonest", "adversaries"],
        ),
    ] {
        let refused = policy(&text).check_job(&assignment(&job).job, &configured()).unwrap_err();
        let refusal = refused.refusal();
        assert_eq!(refusal.code, ErrorCode::PolicyForbids);
        for word in words {
            assert!(refusal.message.contains(word), "{word}: {refusal}");
        }
    }
    let alone = trusting.replace("size_min = 3\n[d", "size_min = 2\n[d");
    let error = Policy::parse(&alone, &Site::new("/site")).unwrap_err().to_string();
    assert!(error.contains("secagg.cohort_size_min"), "{error}");
}

#[test]
fn correlated_noise_needs_a_word_of_the_policy_and_its_run_enough_noise() {
    let job = |bands: u32, noise: &str| {
        JOB.replace("sampling_rate = 0.02", "sampling_rate = 1.0")
            .replace("noise_multiplier = 1.0", noise)
            .replace(
                "delta = 1e-5",
                &format!(
                    "delta = 1e-5\ncorrelated = {{ bands = {bands}, groups = 8, rounds_max = 10 }}"
                ),
            )
    };
    let asked = assignment(&job(8, "noise_multiplier = 4.0"));
    let refusal = policy(POLICY).check(&asked, &configured()).unwrap_err();
    assert!(refusal.to_string().contains("correlated_bands_max"), "{refusal}");
    // The sampling rate of the policy is about samples, of which there are none.
    let allowing = POLICY.to_owned() + "correlated_bands_max = 8\n";
    let approved = policy(&allowing).check(&asked, &configured()).unwrap();
    assert!(approved.events.is_empty(), "the run pays");
    let run = approved.run.unwrap();
    // 100 steps in 8 groups with 8 bands: the sensitivity is that of jax-privacy.
    let single = PrivacyEvent::Gaussian { noise_multiplier: 4.0 / 4.703_352_102_075_046, count: 1 };
    costs_barely_more(&[run], &[single]);
    for (bands, noise, words) in [
        (9, "noise_multiplier = 4.0", ["correlated_bands_max", "9"]),
        // 2 / 4.70 is less than a half.
        (8, "noise_multiplier = 2.0", ["noise_multiplier_min", "0.42"]),
        (8, "noise_multiplier = 500.0", ["noise_multiplier", "400"]),
    ] {
        let refused = policy(&allowing).check(&assignment(&job(bands, noise)), &configured());
        let refusal = refused.unwrap_err().refusal();
        for word in words {
            assert!(refusal.message.contains(word), "{word}: {refusal}");
        }
    }
    let none = POLICY.to_owned() + "correlated_bands_max = 0\n";
    let error = Policy::parse(&none, &Site::new("/site")).unwrap_err().to_string();
    assert!(error.contains("correlated_bands_max"), "{error}");
}

#[test]
fn a_dataset_without_files_is_missing() {
    let refusal = policy(POLICY).check(&assignment(JOB), &[]).unwrap_err().refusal();
    assert_eq!(refusal.code, ErrorCode::DatasetMissing);
}

#[test]
fn lattices_that_wrap_or_do_not_resolve_are_refused() {
    for (step, bits, word) in [
        (1e-12, 32, "too fine"),
        (1e-5, 8, "too fine"),
        (100.0, 32, "too coarse"),
        (f64::NAN, 32, "step"),
        (1e-5, 40, "40 bits"),
    ] {
        let mut asked = assignment(JOB);
        asked.lattice = LatticeSpec { step, bits };
        let refusal = policy(POLICY).check(&asked, &configured()).unwrap_err().refusal();
        assert_eq!(refusal.code, ErrorCode::JobInvalid);
        assert!(refusal.message.contains(word), "{word}: {refusal}");
    }
}

#[test]
fn a_foreign_base_is_refused() {
    let mut asked = assignment(JOB);
    asked.base.model = assignment(&JOB.replace("[4]", "[5]")).job.model;
    let refusal = policy(POLICY).check(&asked, &configured()).unwrap_err();
    assert_eq!(refusal, PolicyRefusal::BaseMismatch);
}

#[test]
fn mistakes_in_the_policy_name_the_key() {
    for (from, to, word) in [
        ("epsilon_max = 8.0", "epsilon_max = nan", "epsilon_max"),
        ("delta = 1e-5", "delta = 0.0", "delta"),
        ("families = [\"mlp\"]", "families = []", "families"),
        ("families", "family", "family"),
        ("\"tenant\"", "\"everyone\"", "everyone"),
        ("noise_multiplier_min = 0.5", "noise_multiplier_min = 0", "noise_multiplier_min"),
    ] {
        let text = POLICY.replace(from, to);
        let error = Policy::parse(&text, &Site::new("/site")).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("policy.toml"), "{word}: {error}");
    }
}

const ADAPTIVE: &str = "clipping.adaptive = { count_noise_multiplier = 4.0 }";

fn adaptive_job() -> String {
    JOB.replace("unit = \"record\"", "unit = \"tenant\"")
        .replace("delta = 1e-5", &format!("delta = 1e-5\n{ADAPTIVE}"))
}

#[test]
fn the_vote_on_the_norm_is_part_of_the_cost_and_of_the_least_noise() {
    let approved = policy(POLICY).check(&assignment(&adaptive_job()), &configured()).unwrap();
    let gaussian = |noise_multiplier| PrivacyEvent::Gaussian { noise_multiplier, count: 1 };
    costs_barely_more(&approved.events, &[gaussian(1.0), gaussian(4.0)]);
    // Update and vote together are like one release with 0.97 times the noise.
    let strict = POLICY.replace("noise_multiplier_min = 0.5", "noise_multiplier_min = 0.98");
    let refusal = policy(&strict).check(&assignment(&adaptive_job()), &configured()).unwrap_err();
    assert!(refusal.to_string().contains("noise_multiplier_min"), "{refusal}");
    assert!(refusal.remedy().contains("at least 0.98"), "{}", refusal.remedy());
}

#[test]
fn the_norm_of_an_assignment_is_held_to_the_policys_bounds() {
    let bounded = POLICY.to_owned() + "clipping_norm_min = 0.5\nclipping_norm_max = 2.0\n";
    let check = |norm: f64| {
        let mut assignment = assignment(&adaptive_job());
        assignment.job.privacy.clipping_norm = norm;
        policy(&bounded).check(&assignment, &configured())
    };
    check(1.9).unwrap();
    for (norm, key) in [(0.4, "clipping_norm_min"), (2.1, "clipping_norm_max")] {
        let refusal = check(norm).unwrap_err();
        assert!(refusal.to_string().contains(key), "{refusal}");
    }
}

#[test]
fn metrics_leave_only_where_the_policy_says_so_and_in_due_rounds() {
    let table = "[evaluation]\nevery_rounds = 3\nmetrics = [\"accuracy\", \"loss\"]\n\
        noise_multiplier = 20.0\n";
    let job = JOB.to_owned() + table;
    let refusal = policy(POLICY).check(&assignment(&job), &configured()).unwrap_err();
    assert!(refusal.to_string().contains("evaluation_noise_multiplier_min"), "{refusal}");
    let least =
        |least: f64| policy(&format!("{POLICY}evaluation_noise_multiplier_min = {least:?}\n"));
    let refusal = least(30.0).check(&assignment(&job), &configured()).unwrap_err();
    assert!(refusal.to_string().contains("20"), "{refusal}");
    for (version, due) in [(0, true), (1, false), (2, false), (3, true)] {
        let mut assignment = assignment(&job);
        assignment.base.version = version;
        let approved = least(10.0).check(&assignment, &configured()).unwrap();
        if due {
            let cost = PrivacyEvent::Gaussian { noise_multiplier: 20.0, count: 2 };
            costs_barely_more(&approved.evaluation, &[cost]);
        } else {
            assert!(approved.evaluation.is_empty());
        }
    }
}
