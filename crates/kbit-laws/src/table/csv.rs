//! Comma-separated values (RFC 4180): fields may stand in quotes, with commas, line ends and doubled quotes in them.

/// A record with the line on which it begins, from 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub line: usize,
    pub fields: Vec<String>,
}

/// The records of `text`; lines without anything are left out. The line of a quote that does not end.
pub fn records(text: &str) -> Result<Vec<Record>, usize> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut records = Vec::new();
    let (mut fields, mut field) = (Vec::new(), String::new());
    let (mut line, mut begun) = (1, 1);
    let mut quoted: Option<usize> = None;
    let mut characters = text.chars().peekable();
    let mut end = |fields: &mut Vec<String>, field: &mut String, begun: usize| {
        fields.push(std::mem::take(field));
        let fields = std::mem::take(fields);
        if fields.len() > 1 || !fields[0].trim().is_empty() {
            records.push(Record { line: begun, fields });
        }
    };
    while let Some(character) = characters.next() {
        line += usize::from(character == '\n');
        match (character, quoted) {
            ('"', Some(_)) if characters.peek() == Some(&'"') => {
                let _ = characters.next();
                field.push('"');
            }
            ('"', Some(_)) => quoted = None,
            (other, Some(_)) => field.push(other),
            ('"', None) if field.is_empty() => quoted = Some(line),
            (',', None) => fields.push(std::mem::take(&mut field)),
            ('\r', None) if characters.peek() == Some(&'\n') => {}
            ('\n', None) => {
                end(&mut fields, &mut field, begun);
                begun = line;
            }
            (other, None) => field.push(other),
        }
    }
    if let Some(line) = quoted {
        return Err(line);
    }
    if !field.is_empty() || !fields.is_empty() {
        end(&mut fields, &mut field, begun);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Vec<(usize, Vec<String>)> {
        records(text).unwrap().into_iter().map(|record| (record.line, record.fields)).collect()
    }

    fn row(line: usize, fields: &[&str]) -> (usize, Vec<String>) {
        (line, fields.iter().map(|field| (*field).to_owned()).collect())
    }

    #[test]
    fn fields_stand_between_commas_or_in_quotes() {
        assert_eq!(fields("a,b\r\n1,\n\n,2"), [row(1, &["a", "b"]), row(2, &["1", ""]), row(4, &["", "2"])]);
        assert_eq!(
            fields("\u{feff}\"a, \"\"b\"\"\nc\",d\ne,f\n"),
            [row(1, &["a, \"b\"\nc", "d"]), row(3, &["e", "f"])]
        );
        assert_eq!(records("a\n\"b\n"), Err(2));
    }
}
