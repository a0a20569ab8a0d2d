"""What the tests' small data set is made with."""

from bev_perception.synth.settings import SynthSettings

SETTINGS = SynthSettings(seconds=2.0, seed=3, camera_rate=2, image_size=(400, 225))
