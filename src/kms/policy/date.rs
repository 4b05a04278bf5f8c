//! Dates of conditions: ISO 8601 in the forms that IAM takes, or seconds since 1970.
//!
//! Called by `condition` for both sides of a comparison, and by `facts` to write the time of a call.

/// Days before the first of each month in a year without the 29th of February.
const BEFORE_MONTH: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];

/// Milliseconds since 1970 of `2026-01-31`, `2026-01-31T23:59Z`, `2026-01-31T23:59:58.5+01:00` or `1769903998`.
pub(super) fn parse(text: &str) -> Option<i64> {
    let Some((day, time)) = text.split_once('T') else {
        return match day_seconds(text) {
            Some(seconds) => Some(seconds * 1000),
            None => millis(text),
        };
    };
    let (time, shift) = match time.find(['Z', '+', '-']) {
        Some(at) if &time[at..] == "Z" => (&time[..at], 0),
        Some(at) => (&time[..at], offset(&time[at..])?),
        None => (time, 0),
    };
    Some((day_seconds(day)? - shift) * 1000 + clock(time)?)
}

/// Milliseconds of `58` or `58.25`.
fn millis(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let fraction = fraction.get(..3).unwrap_or(fraction);
    let plain = |text: &str| text.len() < 16 && text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !plain(whole) || !plain(fraction) {
        return None;
    }
    let whole: i64 = whole.parse().ok()?;
    format!("{whole}{fraction:0<3}").parse().ok()
}

/// `2023-11-14T22:13:20Z`.
pub fn text(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let mut year = 1970 + days * 400 / 146_097;
    while days_before(year) > days {
        year -= 1;
    }
    while days_before(year + 1) <= days {
        year += 1;
    }
    let day = days - days_before(year);
    let starts = |month: usize| BEFORE_MONTH[month] + i64::from(month > 1 && is_leap(year));
    let month = (0..12).rev().find(|month| starts(*month) <= day).unwrap_or(0);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let day = day - starts(month) + 1;
    format!("{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z", month + 1)
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days from 1970 to the first of January of `year`.
fn days_before(year: i64) -> i64 {
    let past = year - 1;
    (year - 1970) * 365 + (past / 4 - past / 100 + past / 400) - (1969 / 4 - 1969 / 100 + 1969 / 400)
}

fn digits(text: &str, length: usize) -> Option<i64> {
    let plain = text.len() == length && text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

fn day_seconds(text: &str) -> Option<i64> {
    let mut fields = text.split('-');
    let mut next = |length| digits(fields.next()?, length);
    let (year, month, day) = (next(4)?, next(2)?, next(2)?);
    if fields.next().is_some() || !(1..=12).contains(&month) || !(1..=31).contains(&day) || year == 0 {
        return None;
    }
    let days = days_before(year)
        + BEFORE_MONTH[usize::try_from(month - 1).ok()?]
        + i64::from(month > 2 && is_leap(year))
        + day
        - 1;
    Some(days * 86_400)
}

/// Milliseconds of a time of day.
fn clock(text: &str) -> Option<i64> {
    let mut fields = text.splitn(3, ':');
    let (hour, minute) = (digits(fields.next()?, 2)?, digits(fields.next()?, 2)?);
    let second = fields.next().map_or(Some(0), millis)?;
    let fits = hour < 24 && minute < 60 && second < 61_000;
    fits.then_some((hour * 3600 + minute * 60) * 1000 + second)
}

/// Seconds of `+01:00` or `-0100`.
fn offset(text: &str) -> Option<i64> {
    let (sign, rest) = if let Some(rest) = text.strip_prefix('+') { (1, rest) } else { (-1, &text[1..]) };
    let plain: String = rest.chars().filter(|c| *c != ':').collect();
    let (hours, minutes) = (digits(plain.get(..2)?, 2)?, digits(plain.get(2..)?, 2)?);
    Some(sign * (hours * 3600 + minutes * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_in_every_form_and_written_in_one() {
        for (given, millis) in [
            ("1970-01-01", 0),
            ("2000-02-29T23:59:59Z", 951_868_799_000),
            ("2023-11-14T22:13:20Z", 1_700_000_000_000),
            ("2023-11-14T22:13Z", 1_699_999_980_000),
            ("2023-11-14T23:13:20.5+01:00", 1_700_000_000_500),
            ("1700000000", 1_700_000_000_000),
        ] {
            assert_eq!(parse(given), Some(millis), "{given}");
        }
        for wrong in ["", "x", "2023-13-01", "2023-1-1", "2023-11-14T25:00Z", "2023-11-14Tx", "inf"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        for seconds in [0, 951_868_799, 951_782_399, 1_700_000_000, 4_102_444_800] {
            assert_eq!(parse(&text(seconds)), Some(seconds * 1000), "{}", text(seconds));
        }
        assert_eq!(text(1_700_000_000), "2023-11-14T22:13:20Z");
    }
}
