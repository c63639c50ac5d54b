/** The login page: with a code in its address it offers the button, else it says how to get one. */

const code = new URLSearchParams(location.search).get("code");
if (code) {
  const form = document.getElementById("enter");
  form.elements.code.value = code;
  form.hidden = false;
  document.getElementById("how").hidden = true;
  form.querySelector("button").focus();
}
