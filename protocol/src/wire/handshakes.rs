//! How many handshakes of strangers this process has refused, and why: for its metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::failure::{Code, Failure};

/// Why a handshake was refused, in one word.
const REASONS: [&str; 5] = ["expired", "wrong_mesh", "wrong_identity", "refused", "broken"];

static COUNTS: [AtomicU64; REASONS.len()] = [const { AtomicU64::new(0) }; REASONS.len()];

/// Counts one; `why` is none where the connection broke before any certificate was judged.
pub(super) fn refused(why: Option<&Failure>) {
    COUNTS[reason(why.map(|failure| failure.code))].fetch_add(1, Ordering::Relaxed);
}

fn reason(code: Option<Code>) -> usize {
    match code {
        Some(Code::CertificateExpired) => 0,
        Some(Code::WrongMesh) => 1,
        Some(Code::IdentityMismatch) => 2,
        Some(_) => 3,
        None => 4,
    }
}

/// Every reason with its count, since the process started.
pub fn counts() -> impl Iterator<Item = (&'static str, u64)> {
    REASONS.into_iter().zip(COUNTS.iter().map(|count| count.load(Ordering::Relaxed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_of_a_certificate_has_its_reason() {
        let cases = [
            (Some(Code::CertificateExpired), "expired"),
            (Some(Code::WrongMesh), "wrong_mesh"),
            (Some(Code::IdentityMismatch), "wrong_identity"),
            (Some(Code::CertificateRefused), "refused"),
            (None, "broken"),
        ];
        for (code, expected) in cases {
            assert_eq!(REASONS[reason(code)], expected);
        }
    }
}
