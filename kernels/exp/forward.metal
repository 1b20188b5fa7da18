// y[i] = exp(x[i]), one thread an element.
uint i = thread_position_in_grid.x;
if (i < size[0]) {
    y[i] = T(metal::exp(float(x[i])));
}
