//! Free port numbers for agents.

use std::{
    collections::VecDeque,
    fs::{self, File},
    hash::{BuildHasher, RandomState},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    sync::Mutex,
};

use anyhow::{Context, Result, bail};

use crate::postgres;

/// Below the range the kernel takes outgoing ports from: nobody's connection can grab a number between our look
/// and the agent's bind.
const FIRST: u16 = 20_000;
const BLOCKS: u16 = 300;
/// Numbers in a block.
const BLOCK: u16 = 40;

/// Blocks of numbers that are this process's own for as long as it lives. Two processes that look at once would find the
/// same numbers free; and an agent that is down for a while must find its own again.
static OURS: Mutex<Ours> = Mutex::new(Ours::NONE);

struct Ours {
    locks: Vec<File>,
    /// Not given to anybody yet.
    left: VecDeque<u16>,
}

impl Ours {
    const NONE: Self = Self { locks: Vec::new(), left: VecDeque::new() };

    /// Takes one more block that no living process has; looks from the block `start` on.
    fn take_block(&mut self, start: u16) -> Result<()> {
        let home = postgres::cache().join("ports");
        fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
        for step in 0..BLOCKS {
            let first = FIRST + (start + step) % BLOCKS * BLOCK;
            let path = home.join(format!("{first}.lock"));
            let lock = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
            if lock.try_lock().is_ok() {
                self.locks.push(lock);
                self.left.extend(first..first + BLOCK);
                return Ok(());
            }
        }
        bail!("other processes have all ports between {FIRST} and {}", FIRST + BLOCKS * BLOCK)
    }
}

/// `wanted` different numbers, each free for TCP and UDP on 127.0.0.1; nobody else is given them while this process lives.
pub(super) fn free(wanted: usize) -> Result<Vec<u16>> {
    let mut ours = OURS.lock().expect("nobody panics while holding it");
    let mut numbers = Vec::new();
    while numbers.len() < wanted {
        match ours.left.pop_front() {
            Some(port) if is_free(port) => numbers.push(port),
            // An agent of a process that has ended.
            Some(_) => {}
            None => {
                let start = RandomState::new().hash_one(std::process::id()) % u64::from(BLOCKS);
                ours.take_block(u16::try_from(start).expect("BLOCKS is a u16"))?;
            }
        }
    }
    Ok(numbers)
}

fn is_free(port: u16) -> bool {
    let address = (Ipv4Addr::LOCALHOST, port);
    TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn numbers_are_different_and_free_and_never_given_twice() {
        let several = [8, 2 * usize::from(BLOCK), 1].map(|wanted| free(wanted).expect("some are free"));
        let all: Vec<u16> = several.concat();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 9 + 2 * usize::from(BLOCK));
        assert!(all.into_iter().all(is_free), "they were said to be free");
    }

    #[test]
    fn a_block_is_not_given_to_two() {
        let mut others = [Ours::NONE, Ours::NONE];
        for other in &mut others {
            other.take_block(7).expect("there are enough");
        }
        let [one, other] = &others;
        assert!(one.left.iter().all(|port| !other.left.contains(port)), "{:?} and {:?}", one.left, other.left);
    }
}
