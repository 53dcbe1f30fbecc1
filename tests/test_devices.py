"""support/devices.py: TensorFlow starts the same whatever the user's settings of Keras."""

import json


def test_settings_of_keras_in_the_environment_and_in_the_users_file_change_nothing(run_python, tmp_path):
    (tmp_path / "keras.json").write_text(json.dumps({
        "floatx": "float16", "epsilon": 1e-7, "backend": "jax", "image_data_format": "channels_first"}))
    code = ("from support import devices\ndevices.start_tensorflow()\nimport model\n"
            "pynet = model.build_pynet(64, 64, width_multiplier=0.125)\n"
            "print(pynet.outputs[7].shape, pynet.variables['generator/Variable'].dtype)")
    done = run_python(code, cwd=tmp_path, KERAS_HOME=str(tmp_path), TF_USE_LEGACY_KERAS="1", KERAS_BACKEND="torch")
    assert done.out.endswith("(None, 2, 2, 3) <dtype: 'float32'>\n"), done.err
