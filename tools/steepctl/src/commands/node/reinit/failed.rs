//! A node that is FAILED and replicates with nobody: whether it ever had anything to copy again, and from where.
//!
//! Its operations say so: what has failed was undone, and with it everything else that could tell.

use steep_protocol::{
    failure::{Code, Failure},
    operation::OperationStatus,
    v1,
};

use super::{Chosen, ReinitArgs};
use crate::{client::Client, commands::node::resume::LOOKED_THROUGH, output::safe};

/// What the node's last initialization asked for; the source is another where one was named.
///
/// Fails with [`Code::NotReplicated`], and says which command begins instead, where the node was never synchronized or where
/// some tables alone were asked for: a subscription that could bring them is not there.
pub(super) async fn choose(args: &ReinitArgs, client: &mut Client<'_>) -> Result<Chosen, Failure> {
    let node = &args.node;
    let listed = client.list_operations(node.as_str(), LOOKED_THROUGH).await?.operations;
    let inits: Vec<_> = listed.iter().filter(|op| op.kind == "init" && op.target == node.as_str()).collect();
    let last = last_of(args, &inits)?;
    let cannot_tell = || {
        let text = format!("{node} is failed, and operation {} does not say how it was started", safe(&last.op_id));
        Failure::new(Code::NotReplicated, text).hint(format!("steepctl node start {node} --from SOURCE --force"))
    };
    let asked = client.get_operation(&last.op_id).await?.start.ok_or_else(cannot_tell)?;
    let is_auto = args.source == "auto";
    let source = if is_auto { &asked.source } else { &args.source };
    let source = source.parse().map_err(|_| cannot_tell())?;
    Ok(Chosen { source, one_way: asked.one_way, is_auto, replicates: false })
}

/// The last of the node's initializations, newest first in `inits`, where one of them made it a node with rows of others.
fn last_of<'a>(args: &ReinitArgs, inits: &[&'a v1::Operation]) -> Result<&'a v1::Operation, Failure> {
    let node = &args.node;
    let completed = OperationStatus::Completed.as_str();
    let last = inits.first().filter(|_| inits.iter().any(|op| op.status == completed));
    let Some(last) = last else {
        let source = inits.first().map_or_else(|| "SOURCE".to_owned(), |op| safe(&op.source));
        let text = format!("{node} is failed and was never synchronized: there is nothing to copy again");
        return Err(Failure::new(Code::NotReplicated, text).hint(format!("steepctl node start {node} --from {source}")));
    };
    if args.full {
        return Ok(last);
    }
    let text = format!("{node} is failed and replicates with nobody: operation {} was undone", safe(&last.op_id));
    let hint = format!("steepctl node reinit {node} --full initializes all of it again");
    Err(Failure::new(Code::NotReplicated, text).hint(hint))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        reinit: ReinitArgs,
    }

    fn init(id: &str, status: &str) -> v1::Operation {
        v1::Operation { op_id: id.into(), source: "node_a".into(), status: status.into(), ..Default::default() }
    }

    #[test]
    fn a_node_that_was_synchronized_once_is_initialized_as_last_time_and_any_other_is_to_be_started() {
        let args = |line: &str| Line::try_parse_from(line.split(' ')).expect("a good line").reinit;
        let (full, some) = (args("reinit node_b --full"), args("reinit node_b --tables a"));
        let (first, again) = (init("1", "completed"), init("2", "failed"));
        assert_eq!(last_of(&full, &[&again, &first]).expect("it was synchronized").op_id, "2");
        let told = |args, inits: &[&v1::Operation]| last_of(args, inits).expect_err("it cannot be").hint;
        assert!(told(&some, &[&again, &first]).contains("node reinit node_b --full"));
        for args in [&full, &some] {
            assert_eq!(told(args, &[&again]), "steepctl node start node_b --from node_a");
            assert_eq!(told(args, &[]), "steepctl node start node_b --from SOURCE");
        }
    }
}
