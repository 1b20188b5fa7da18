"""Operations with a form for each kind of machine: one folder an operation, its reference beside it."""
