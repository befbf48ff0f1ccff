//! What the demo found: a table for people, one JSON object for programs.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;
use tributary_protocol::job::{JobSpec, PrivacyUnit, Trust};

use super::{
    dropout::Killed,
    snapshot::{bytes, percent},
};

/// The result of one demo.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DemoReport {
    /// Rounds that were committed.
    pub rounds: u64,
    /// Accuracy of the initial base on the public test images.
    pub initial_accuracy: f64,
    /// Accuracy of the final base on the public test images.
    pub base_accuracy: f64,
    /// One entry for each tenant.
    pub tenants: Vec<TenantReport>,
    /// With secure aggregation, the agent that was killed during a round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub killed: Option<Killed>,
}

/// What one tenant got, and what it paid.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TenantReport {
    /// The tenant.
    pub id: String,
    /// Accuracy of the final base on the tenant's own held-out data.
    pub base_accuracy: f64,
    /// Accuracy of what the tenant serves there: the base with its private adapter, or the base
    /// alone where no adapter did better.
    pub adapter_accuracy: f64,
    /// What the tenant's ledger says is spent.
    pub epsilon: f64,
    /// The δ of that ε.
    pub delta: f64,
    /// Bytes of updates that left the site.
    pub bytes_sent: u64,
    /// Whether an adapter is served.
    #[serde(skip)]
    pub adapted: bool,
}

impl DemoReport {
    /// How much the adapters gain, on average over the tenants.
    #[must_use]
    pub fn mean_gain(&self) -> f64 {
        let gains =
            self.tenants.iter().map(|tenant| tenant.adapter_accuracy - tenant.base_accuracy);
        gains.sum::<f64>() / self.tenants.len().max(1) as f64
    }

    /// The report for people.
    #[must_use]
    pub fn text(&self, job: &JobSpec) -> String {
        format!(
            "{}\n\nThe shared base after {} rounds: {} on the 10,000 public test images (before: {}).\n\
             Private adapters: {:+.1} points on average over the base, on each tenant's held-out \
             data.\n{}{}\n",
            self.table(),
            self.rounds,
            percent(self.base_accuracy),
            percent(self.initial_accuracy),
            self.mean_gain() * 100.0,
            self.dropout(),
            promise(job)
        )
    }

    fn dropout(&self) -> String {
        let Some(Killed { tenant, round, phase }) = &self.killed else { return String::new() };
        format!(
            "The agent of {tenant} was killed (kill -9) while round {round} was {phase}: the other \
             {} revealed what removes the masks that concern it, and the round was committed.\n",
            self.tenants.len() - 1
        )
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(["tenant", "base", "base + adapter", "ε spent", "δ", "bytes sent"]);
        for tenant in &self.tenants {
            let adapter = percent(tenant.adapter_accuracy);
            table.add_row([
                tenant.id.clone(),
                percent(tenant.base_accuracy),
                if tenant.adapted { adapter } else { format!("{adapter} (base kept)") },
                format!("{:.3}", tenant.epsilon),
                format!("{:e}", tenant.delta),
                bytes(tenant.bytes_sent),
            ]);
        }
        table.column_iter_mut().skip(1).for_each(|column| {
            column.set_cell_alignment(CellAlignment::Right);
        });
        table
    }
}

/// Names the privacy unit and the neighbouring relation of every ε in the table.
fn promise(job: &JobSpec) -> String {
    let unit = match job.privacy.unit {
        PrivacyUnit::Record => {
            "one record of one tenant: neighbouring datasets differ by adding or removing it"
        }
        PrivacyUnit::Tenant => {
            "all data of one tenant: neighbouring runs differ by adding or removing its updates"
        }
    };
    let trust = match job.privacy.trust {
        Trust::Local => {
            "Every tenant adds its own noise (trust: local), so (ε, δ) holds even against the \
             coordinator."
        }
        Trust::Distributed => {
            "Every tenant adds a share of the noise (trust: distributed). The coordinator sees only \
             sums of masked\nupdates; (ε, δ) holds for them even if it lies and tenants collude with \
             it, as many as the job tolerates."
        }
    };
    format!(
        "Privacy unit: {unit}.\n{trust}\nAccuracies on held-out data are shown by each tenant's \
         own agent and never leave its site."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> DemoReport {
        let tenant = |id: &str, base_accuracy, adapter_accuracy, adapted| TenantReport {
            id: id.to_owned(),
            base_accuracy,
            adapter_accuracy,
            epsilon: 7.654_321,
            delta: 1e-5,
            bytes_sent: 2_345_678,
            adapted,
        };
        DemoReport {
            rounds: 20,
            initial_accuracy: 0.1,
            base_accuracy: 0.8123,
            tenants: vec![tenant("ash", 0.8, 0.9, true), tenant("elm", 0.85, 0.85, false)],
            killed: None,
        }
    }

    #[test]
    fn json_has_the_agreed_keys() {
        let json = serde_json::to_value(report()).unwrap();
        let keys = |value: &serde_json::Value| -> Vec<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(keys(&json), ["base_accuracy", "initial_accuracy", "rounds", "tenants"]);
        let tenant = ["adapter_accuracy", "base_accuracy", "bytes_sent", "delta", "epsilon", "id"];
        assert_eq!(keys(&json["tenants"][0]), tenant);
    }

    #[test]
    fn the_text_says_who_was_killed_and_what_the_coordinator_sees() {
        let job =
            toml::from_str(include_str!("../../experiments/fashion-mnist-secagg.toml")).unwrap();
        let killed = Killed { tenant: "elm".to_owned(), round: 2, phase: "reporting".to_owned() };
        let text = DemoReport { killed: Some(killed), ..report() }.text(&job);
        for expected in ["elm was killed", "round 2 was reporting", "only sums of masked"] {
            assert!(text.contains(expected), "{expected} is missing:\n{text}");
        }
    }

    #[test]
    fn the_text_names_unit_and_neighbouring_relation() {
        let job =
            toml::from_str(include_str!("../../experiments/fashion-mnist-demo.toml")).unwrap();
        let text = report().text(&job);
        for expected in [
            "81.2 %",
            "+5.0 points",
            "adding or removing",
            "2.3 MB",
            "7.654",
            "1e-5",
            "(base kept)",
        ] {
            assert!(text.contains(expected), "{expected} is missing:\n{text}");
        }
    }
}
