//! Asking for a passphrase on the terminal without showing it.
//!
//! Called by the command lines. Puts the terminal back as it was, also when reading fails.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

use zeroize::Zeroizing;

/// Longest line read.
const MAX_LINE: u64 = 4096;

struct EchoOff<'a> {
    terminal: &'a File,
    before: libc::termios,
}

impl<'a> EchoOff<'a> {
    fn new(terminal: &'a File) -> io::Result<Self> {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the descriptor is open and `settings` has room for what the call fills in.
        if unsafe { libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: filled by the successful call above.
        let before = unsafe { settings.assume_init() };
        let mut quiet = before;
        quiet.c_lflag &= !libc::ECHO;
        quiet.c_lflag |= libc::ECHONL;
        // SAFETY: the descriptor is open and `quiet` is a valid setting of it.
        if unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSAFLUSH, &raw const quiet) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { terminal, before })
    }
}

impl Drop for EchoOff<'_> {
    fn drop(&mut self) {
        // SAFETY: the descriptor is still open and `before` is what it said of itself.
        unsafe { libc::tcsetattr(self.terminal.as_raw_fd(), libc::TCSAFLUSH, &raw const self.before) };
    }
}

/// Shows `prompt` on the controlling terminal and reads one line without echo.
pub fn ask_secret(prompt: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
    terminal.write_all(prompt.as_bytes())?;
    let quiet = EchoOff::new(&terminal)?;
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_LINE as usize));
    let mut input = BufReader::with_capacity(MAX_LINE as usize, io::Read::take(quiet.terminal, MAX_LINE));
    input.read_until(b'\n', &mut line)?;
    while line.last().is_some_and(|c| *c == b'\n' || *c == b'\r') {
        line.pop();
    }
    Ok(line)
}
