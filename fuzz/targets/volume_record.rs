//! The volume record; what is checked stands in tests/lower_formats.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    kmsfs_fuzz::lower_formats::check_of("volume_record")(data);
});
