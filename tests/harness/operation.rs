//! An operation a spec has started, watched as an operator would: through steepctl.

use serde_json::Value;

use crate::{
    node::Node,
    steepctl::Outcome,
    wait::{PATIENCE, until},
};

/// An operation that runs, or ran, in the agents.
#[derive(Debug, Clone)]
pub struct Operation {
    node: Node,
    id: String,
}

impl Operation {
    pub(crate) fn new(node: Node, id: &str) -> Self {
        Self { node, id: id.to_owned() }
    }

    /// The operation that `started` says it has begun on `node`.
    pub fn known(node: &Node, started: &Outcome) -> Self {
        let started = started.json();
        Self::new(node.clone(), started["op_id"].as_str().expect("a start names its operation"))
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// What `op show` says of it.
    pub async fn shown(&self) -> Result<Value, String> {
        let command = self.node.steepctl("op show").arg(&self.id).arg("-o").arg("json");
        let outcome: Outcome =
            tokio::task::spawn_blocking(move || command.outcome()).await.expect("steepctl can be run");
        if outcome.status == 0 { Ok(outcome.json()) } else { Err(outcome.to_string()) }
    }

    /// Waits until `step` has begun: it runs, or is done already.
    pub async fn reaches(&self, step: &str) {
        until(&format!("operation {} reaches {step:?}", self.id), PATIENCE, async || {
            let shown = self.shown().await?;
            let steps = shown["steps"].as_array().cloned().unwrap_or_default();
            let Some(found) = steps.iter().find(|it| it["name"] == step) else {
                let names: Vec<_> = steps.iter().map(|it| it["name"].to_string()).collect();
                return Err(format!("no such step; there are {}", names.join(", ")));
            };
            if found["status"] == "pending" { Err(progress(&shown)) } else { Ok(()) }
        })
        .await;
    }

    /// Waits until it has ended, and returns how: completed, failed, cancelled or interrupted.
    pub async fn ends(&self) -> String {
        self.end().await["operation"]["status"].as_str().unwrap_or_default().to_owned()
    }

    async fn end(&self) -> Value {
        // A whole initialization fits in here, also on a busy machine.
        until(&format!("operation {} ends", self.id), PATIENCE * 4, async || {
            let shown = self.shown().await?;
            let ended = ["completed", "failed", "cancelled", "interrupted"]
                .iter()
                .any(|status| shown["operation"]["status"] == *status);
            if ended { Ok(shown) } else { Err(progress(&shown)) }
        })
        .await
    }

    /// Waits for its end, which must be success.
    pub async fn completes(&self) {
        let shown = self.end().await;
        assert_eq!(shown["operation"]["status"], "completed", "{}", progress(&shown));
    }

    /// Waits for its end, which must be a failure with `code`.
    pub async fn fails_with(&self, code: &str) {
        let shown = self.end().await;
        assert_eq!(shown["operation"]["status"], "failed", "{}", progress(&shown));
        assert_eq!(shown["operation"]["failure"]["code"], code, "{}", progress(&shown));
    }
}

fn progress(shown: &Value) -> String {
    let operation = &shown["operation"];
    format!(
        "{} in step {} at {} %, failure {}",
        operation["status"], operation["step"], operation["progress"]["overall_percent"], operation["failure"]
    )
}
