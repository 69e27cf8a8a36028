//! Free port numbers for agents.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    net::{Ipv4Addr, TcpListener, UdpSocket},
};

use anyhow::{Result, bail};

/// Below the range the kernel takes outgoing ports from: nobody's connection can grab a number between our look
/// and the agent's bind.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// `wanted` different numbers, each free for TCP and UDP on 127.0.0.1.
pub(super) fn free(wanted: usize) -> Result<Vec<u16>> {
    let start = RandomState::new().hash_one(std::process::id());
    let mut held = Vec::new();
    let mut numbers = HashSet::new();
    for step in 0..u64::from(COUNT) {
        if numbers.len() == wanted {
            break;
        }
        // 7,919 is prime to COUNT, so the walk meets every number once.
        let offset = (start % u64::from(COUNT) + step * 7_919) % u64::from(COUNT);
        let port = FIRST + u16::try_from(offset).expect("COUNT is a u16");
        let both = (TcpListener::bind((Ipv4Addr::LOCALHOST, port)), UdpSocket::bind((Ipv4Addr::LOCALHOST, port)));
        if let (Ok(tcp), Ok(udp)) = both {
            held.push((tcp, udp));
            numbers.insert(port);
        }
    }
    if numbers.len() < wanted {
        bail!("fewer than {wanted} ports are free between {FIRST} and {}", FIRST + COUNT);
    }
    Ok(numbers.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_different_and_free() {
        let ports = free(8).expect("some are free");
        assert_eq!(ports.iter().collect::<HashSet<_>>().len(), 8);
        for port in ports {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("it was said to be free");
        }
    }
}
