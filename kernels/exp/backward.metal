// dx[i] = dy[i] * y[i]: the derivative of exp is its own output, so the input is not read again.
uint i = thread_position_in_grid.x;
if (i < size[0]) {
    dx[i] = T(float(dy[i]) * float(y[i]));
}
