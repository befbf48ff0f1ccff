//! The server optimizer of a job and its numbers.

use serde::{Deserialize, Serialize};

use super::{JobSpecError, is_positive};

/// The server optimizer and its parameters.
///
/// `tau` is the degree of adaptivity of Reddi et al. 2021 (arXiv:2003.00295): it stands in every
/// denominator, and the second moment starts at its square.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ServerOptimizerSpec {
    /// Stochastic gradient descent on the pseudo-gradient; rate 1 without momentum is FedAvg.
    Sgd {
        /// Step size on the pseudo-gradient.
        #[serde(default = "one")]
        server_learning_rate: f64,
        /// Momentum in [0, 1).
        #[serde(default)]
        momentum: f64,
    },
    /// `FedAdagrad`: the second moment is the sum of all squares, so steps only become shorter.
    Adagrad {
        /// Step size.
        server_learning_rate: f64,
        /// Added to the root of the second moment, in model units.
        #[serde(default = "tau_default")]
        tau: f64,
    },
    /// `FedAdam`: both moments are exponential averages, without bias correction.
    Adam {
        /// Step size.
        server_learning_rate: f64,
        /// Decay of the first moment, in [0, 1).
        #[serde(default = "beta1_default")]
        beta1: f64,
        /// Decay of the second moment, in [0, 1).
        #[serde(default = "beta2_default")]
        beta2: f64,
        /// Added to the root of the second moment, in model units.
        #[serde(default = "tau_default")]
        tau: f64,
    },
    /// `FedYogi`: as Adam, but the second moment moves by at most the newest square.
    Yogi {
        /// Step size.
        server_learning_rate: f64,
        /// Decay of the first moment, in [0, 1).
        #[serde(default = "beta1_default")]
        beta1: f64,
        /// Weight of the second moment's past, in [0, 1).
        #[serde(default = "beta2_default")]
        beta2: f64,
        /// Added to the root of the second moment, in model units.
        #[serde(default = "tau_default")]
        tau: f64,
    },
}

const fn one() -> f64 {
    1.0
}

const fn beta1_default() -> f64 {
    0.9
}

const fn beta2_default() -> f64 {
    0.99
}

const fn tau_default() -> f64 {
    1e-3
}

impl Default for ServerOptimizerSpec {
    fn default() -> Self {
        Self::Sgd { server_learning_rate: one(), momentum: 0.0 }
    }
}

impl ServerOptimizerSpec {
    /// Checks every number.
    ///
    /// # Errors
    /// [`JobSpecError::OutOfRange`] naming the key.
    pub fn validate(&self) -> Result<(), JobSpecError> {
        let positive = |field, value| (field, value, is_positive(value), "a finite number above 0");
        let decay = |field, value: f64| (field, value, (0.0..1.0).contains(&value), "in [0, 1)");
        let checks = match *self {
            Self::Sgd { server_learning_rate, momentum } => vec![
                positive("server_optimizer.sgd.server_learning_rate", server_learning_rate),
                decay("server_optimizer.sgd.momentum", momentum),
            ],
            Self::Adagrad { server_learning_rate, tau } => vec![
                positive("server_optimizer.adagrad.server_learning_rate", server_learning_rate),
                positive("server_optimizer.adagrad.tau", tau),
            ],
            Self::Adam { server_learning_rate, beta1, beta2, tau } => vec![
                positive("server_optimizer.adam.server_learning_rate", server_learning_rate),
                decay("server_optimizer.adam.beta1", beta1),
                decay("server_optimizer.adam.beta2", beta2),
                positive("server_optimizer.adam.tau", tau),
            ],
            Self::Yogi { server_learning_rate, beta1, beta2, tau } => vec![
                positive("server_optimizer.yogi.server_learning_rate", server_learning_rate),
                decay("server_optimizer.yogi.beta1", beta1),
                decay("server_optimizer.yogi.beta2", beta2),
                positive("server_optimizer.yogi.tau", tau),
            ],
        };
        match checks.into_iter().find(|(_, _, holds, _)| !holds) {
            Some((field, value, _, range)) => Err(JobSpecError::OutOfRange { field, value, range }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Document {
        server_optimizer: ServerOptimizerSpec,
    }

    fn parse(text: &str) -> ServerOptimizerSpec {
        toml::from_str::<Document>(text).expect("parses").server_optimizer
    }

    #[test]
    fn adaptive_optimizers_need_only_a_rate() {
        for name in ["adagrad", "adam", "yogi"] {
            let text = format!("server_optimizer.{name} = {{ server_learning_rate = 0.1 }}");
            parse(&text).validate().expect("valid");
        }
        let Err(error) = toml::from_str::<Document>("server_optimizer.adam = { beta3 = 0.1 }")
        else {
            panic!("a typo was accepted")
        };
        assert!(error.to_string().contains("beta3"), "{error}");
    }

    #[test]
    fn bad_numbers_are_named() {
        for (name, field, value) in [
            ("sgd", "momentum", "1.0"),
            ("adagrad", "server_learning_rate", "0.0"),
            ("adagrad", "tau", "0.0"),
            ("adam", "beta1", "1.0"),
            ("adam", "beta2", "-0.1"),
            ("adam", "tau", "inf"),
            ("adam", "server_learning_rate", "nan"),
            ("yogi", "beta1", "nan"),
            ("yogi", "beta2", "1.0"),
            ("yogi", "tau", "-1.0"),
            ("yogi", "server_learning_rate", "-1.0"),
        ] {
            let rate =
                if field == "server_learning_rate" { "" } else { "server_learning_rate = 0.1, " };
            let text = format!("server_optimizer.{name} = {{ {rate}{field} = {value} }}");
            let error = parse(&text).validate().expect_err(&text).to_string();
            assert!(error.contains(&format!("server_optimizer.{name}.{field}")), "{error}");
        }
    }
}
