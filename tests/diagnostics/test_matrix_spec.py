import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom.diagnostics import MatrixSpec, as_matrix, from_matrix, map_matrices, matrix_shape


def test_flax_query_kernel_reads_as_torch_linear_weight():
    kernel = np.arange(2 * 5 * 3 * 4.0).reshape(2, 5, 3, 4)  # [layer, in, heads, head_dim]
    spec = MatrixSpec(out=(2, 3), in_=(1,), batch=(0,))
    matrix = as_matrix(kernel.astype(np.float32), spec)
    assert matrix.shape == matrix_shape(kernel.shape, spec) == (2, 12, 5)
    x = np.random.default_rng(0).standard_normal(5)
    np.testing.assert_allclose(np.asarray(matrix[1]) @ x, np.einsum("ihd,i->hd", kernel[1], x).ravel(), rtol=1e-6)
    np.testing.assert_array_equal(from_matrix(matrix, spec, kernel.shape), kernel)


def test_output_kernel_merges_heads_on_the_input_side():
    kernel = np.arange(2 * 3 * 4 * 5.0, dtype=np.float32).reshape(2, 3, 4, 5)  # [layer, heads, head_dim, out]
    spec = MatrixSpec(out=(3,), in_=(1, 2), batch=(0,))
    np.testing.assert_array_equal(as_matrix(kernel, spec), kernel.reshape(2, 12, 5).transpose(0, 2, 1))
    np.testing.assert_array_equal(from_matrix(as_matrix(kernel, spec), spec, kernel.shape), kernel)


def test_map_matrices_keeps_the_tree_and_leaves_the_rest():
    specs = {"a": MatrixSpec(out=(1,), in_=(0,)), "b": {"scale": None}}
    tree = {"a": jnp.ones((3, 2)), "b": {"scale": jnp.ones(3)}}
    out = map_matrices(lambda x, y: (x - y).shape, specs, tree, jax.tree.map(lambda x: 2 * x, tree))
    assert out == {"a": (2, 3), "b": {"scale": None}}


@pytest.mark.parametrize(
    "spec", [MatrixSpec(out=(0,), in_=(0,)), MatrixSpec(out=(0,), in_=()), MatrixSpec(out=(2,), in_=(0,))]
)
def test_wrong_spec_is_refused_with_the_shape(spec):
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        as_matrix(jnp.ones((3, 2)), spec)


def test_from_matrix_refuses_another_shape():
    with pytest.raises(ValueError, match="need"):
        from_matrix(jnp.ones((3, 3)), MatrixSpec(out=(1,), in_=(0,)), (3, 2))
