//! As much of the protobuf format as CRIU's files need: fields of a message, one after the other. Nothing is
//! copied; whatever is not of the form ends the walk.

/// A field's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// A field, and where it ends in its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field<'a> {
    pub(crate) number: u64,
    pub(crate) value: Value<'a>,
    pub(crate) end: usize,
}

/// A message, not yet looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a>(pub(crate) &'a [u8]);

impl<'a> Message<'a> {
    /// Its fields. `None` in place of the first that cannot be read, and nothing after it.
    pub(crate) fn fields(self) -> impl Iterator<Item = Option<Field<'a>>> {
        let (all, mut rest) = (self.0.len(), self.0);
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let field =
                field(&mut rest).map(|(number, value)| Field { number, value, end: all - rest.len() });
            if field.is_none() {
                rest = &[];
            }
            Some(field)
        })
    }

    /// The first field of this number.
    pub(crate) fn find(self, wanted: u64) -> Option<Field<'a>> {
        self.fields().map_while(|field| field).find(|field| field.number == wanted)
    }

    /// The number in it.
    pub(crate) fn number(self, wanted: u64) -> Option<u64> {
        match self.find(wanted)?.value {
            Value::Number(number) => Some(number),
            Value::Bytes(_) => None,
        }
    }

    /// The bytes in it.
    pub(crate) fn bytes(self, wanted: u64) -> Option<&'a [u8]> {
        match self.find(wanted)?.value {
            Value::Bytes(bytes) => Some(bytes),
            Value::Number(_) => None,
        }
    }
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let key = varint(rest)?;
    let value = match key & 7 {
        0 => Value::Number(varint(rest)?),
        1 => Value::Number(u64::from_le_bytes(*chunk::<8>(rest)?)),
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            let (bytes, after) = rest.split_at_checked(length)?;
            *rest = after;
            Value::Bytes(bytes)
        }
        5 => Value::Number(u64::from(u32::from_le_bytes(*chunk::<4>(rest)?))),
        _ => return None,
    };
    Some((key >> 3, value))
}

fn chunk<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (chunk, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(chunk)
}

/// Seven bits a byte, the lowest first.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if shift == 63 && bits > 1 {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_with_their_ends() {
        // Field 1: 300; field 2: two bytes; field 3: a fixed number.
        let bytes = [0x08, 0xac, 0x02, 0x12, 0x02, 7, 8, 0x1d, 1, 0, 0, 0];
        let fields: Vec<_> = Message(&bytes).fields().collect();
        let field = |number, value, end| Some(Field { number, value, end });
        assert_eq!(
            fields,
            [
                field(1, Value::Number(300), 3),
                field(2, Value::Bytes(&[7, 8]), 7),
                field(3, Value::Number(1), 12)
            ]
        );
        assert_eq!((Message(&bytes).number(3), Message(&bytes).bytes(2)), (Some(1), Some(&[7, 8][..])));
        assert_eq!((Message(&bytes).number(2), Message(&bytes).number(9)), (None, None));
        for end in 1..bytes.len() {
            // Cut anywhere but between fields it ends with what cannot be read.
            let cut = Message(&bytes[..end]).fields().last();
            assert_eq!(cut == Some(None), ![3, 7].contains(&end), "{end}");
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_none() {
        let read = |mut bytes: &[u8]| varint(&mut bytes);
        let longest = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(read(&longest), Some(u64::MAX));
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]), None);
        assert_eq!(read(&[0x80; 11]), None);
        assert_eq!(read(&[]), None);
        // A length that reaches beyond the message, and one beyond all memory.
        for length in [&[0x05][..], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]] {
            let message = [&[0x0a], length, &[0, 0]].concat();
            let found = Message(&message).find(1);
            assert_eq!(found, None);
        }
    }
}
