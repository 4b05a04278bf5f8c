//! `kmsfs speed`: what the ciphers do on this machine.

use super::error::CliError;
use super::output::table;
use crate::volume::speed;

/// Measures and prints.
pub fn run() -> Result<(), CliError> {
    let rows: Vec<_> = speed::measure()
        .into_iter()
        .map(|figure| vec![figure.what.to_owned(), format!("{:.0} {}", figure.rate, figure.unit)])
        .collect();
    table(&["ONE CORE", "RATE"], &rows)
}
